"""The status of a FineTuneSweep, and what its trials must do next, computed from stored objects alone."""
