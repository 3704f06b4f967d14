"""Bias evaluation: sentence pairs, scoring and analysis."""
