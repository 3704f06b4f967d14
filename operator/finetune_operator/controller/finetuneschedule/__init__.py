"""The controller of FineTuneSchedules."""
