"""Bounds and defaults that a platform engineer sets, and the check of a FineTuneJob against them."""
