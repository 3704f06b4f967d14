"""Data classes about a run that several packages share: evaluation results, adapter facts and the adapter manifest."""
