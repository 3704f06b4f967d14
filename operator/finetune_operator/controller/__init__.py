"""What the controllers of all kinds share: work queue, workers and gauges. Each kind has a package of its own."""
