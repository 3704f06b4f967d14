"""Data classes about a run that several packages share: evaluation results and the adapter manifest."""
