"""Computes the status of a FineTuneJob, its deadlines and its events from the observed state."""
