"""What holds for all tests."""

from hypothesis import settings

# Machines are slow at times; a test that hangs has a timeout.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
