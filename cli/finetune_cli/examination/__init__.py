"""Checks of `finetune doctor`: what a cluster and a namespace lack for a run."""
