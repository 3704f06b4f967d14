"""Lets people follow a run in MLflow, Weights & Biases or TensorBoard. Nothing here can fail or delay a run."""
