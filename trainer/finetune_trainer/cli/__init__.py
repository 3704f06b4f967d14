"""Command line interface: `run`, `plan`, `generate`, `clean` and `task`."""
