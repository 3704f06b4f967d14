"""Loads and validates the configuration of a run."""
