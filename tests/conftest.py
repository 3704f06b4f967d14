"""Settings of all tests. The markers are described in `pyproject.toml` and in `docs/contributing/testing.md`."""

from hypothesis import settings

# Examples have no deadline, because machines are slow at times. A test that hangs is ended by pytest-timeout.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
