"""Checks of a run before its first step, on a small batch of its own rows.

Each check compares what the training does with an independent computation. A check returns findings, which the log, the
report and `evaluation.json` show, or raises `MODEL_UNSUPPORTED`, or `CONFIG_INVALID` for a setting that the model does
not support, with both numbers and what to change.
"""
