"""Loads published adapters into inference servers."""
