"""The one error that a user sees without a traceback."""


class UserError(Exception):
    """One line that says what is wrong and what to do about it."""
