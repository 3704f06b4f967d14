"""Saved states of a run, from which another attempt goes on."""
