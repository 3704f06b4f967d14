"""The error that the command line prints without a traceback."""


class UserError(Exception):
    """A problem that the user can solve; its message is one line with the cause and what to do."""
