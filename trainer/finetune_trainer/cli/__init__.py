"""Command line interface: `run`, `plan`, `generate`, `cache`, `clean`, `sync-alias` and `task`."""
