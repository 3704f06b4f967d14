"""The controller of FineTuneJobs: observe, plan, apply, and the progress of running trainers."""
