"""Readers of Jobs, pods and Workloads, and the state observed of one FineTuneJob."""
