"""Command line interface: `run`, `plan` and `generate`."""
