"""Work queue and workers of all kinds, and the controller of FineTuneJobs: reconciler, progress poller and metrics."""
