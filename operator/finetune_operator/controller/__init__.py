"""Reconciles FineTuneJobs: work queue, workers, reconciler and progress polling."""
