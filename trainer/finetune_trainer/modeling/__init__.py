"""The base model: where it comes from, what may be loaded, and the adapter that is trained on it."""
