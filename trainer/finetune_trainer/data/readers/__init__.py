"""Readers of data files: JSON Lines, JSON, CSV and Parquet, optionally compressed."""
