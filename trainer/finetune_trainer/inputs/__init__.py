"""Resolves and downloads the inputs of a run: data, base model and adapter."""
