"""What a running trainer reports: progress, metrics, logs and the termination message."""
