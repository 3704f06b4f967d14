"""Tracking of runs in MLflow, Weights & Biases and TensorBoard. Nothing here can fail or delay a run."""
