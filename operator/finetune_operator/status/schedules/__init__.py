"""The status of FineTuneSchedules. Pure functions: all input is passed as arguments."""
