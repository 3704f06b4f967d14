"""Builders of the Kubernetes objects that a FineTuneJob owns."""
