"""`finetune ui`: local, read-only pages about runs, schedules, sweeps and results."""
