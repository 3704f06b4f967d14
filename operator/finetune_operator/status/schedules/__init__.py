"""The status of a FineTuneSchedule, computed by pure functions."""
