"""Checkpoints of a run, from which the next attempt resumes."""
