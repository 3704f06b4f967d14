"""Settings of all tests. The markers are described in `pyproject.toml` and in `docs/contributing/testing.md`."""

import signal

from hypothesis import settings

# Examples have no deadline, because machines are slow at times. A test that hangs is ended by pytest-timeout.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A script that starts `make test` in the background makes it ignore SIGINT, and so would the programs that tests
# interrupt: they would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
