"""Bounds, defaults and compute profiles that a platform engineer sets, and the check of a FineTuneJob against them."""
