"""Errors of commands, and how they end the process: one line on stderr and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType

from finetune_cli.exit_statuses import EXIT_FAILURE, EXIT_TIMEOUT, EXIT_USAGE
from finetune_trainer.text import to_one_line

DEBUG_ENV = "FINETUNE_DEBUG"
"""Variable that makes an unexpected error print its traceback, if it is not empty."""


class CommandError(Exception):
    """An error of a command. The message is complete and is printed as it is."""

    def __init__(self, message: str, exit_status: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def print_error(message: str) -> None:
    """Print an error to stderr, on one line."""
    sys.stderr.write(f"error: {to_one_line(message, 4000)}\n")


def is_expected(error: Exception) -> bool:
    """Return whether the error is no bug: a command, the client or the trainer's code has raised it on purpose."""
    if isinstance(error, CommandError):
        return True
    # Slow to import, and imported before if one of them has raised the error.
    from finetune_operator.client.errors import ClientError
    from finetune_trainer.errors import TrainerError

    return isinstance(error, (ClientError, TrainerError))


def report_error(error: Exception) -> int:
    """Print an expected error, and return the exit status. An invalid manifest has one line for each mistake."""
    if isinstance(error, CommandError):
        print_error(str(error))
        return error.exit_status
    from finetune_operator.client.errors import InvalidManifest, WaitTimeout
    from finetune_trainer.contract import Reason
    from finetune_trainer.errors import TrainerError

    problems = error.problems if isinstance(error, InvalidManifest) else []
    is_invalid = isinstance(error, InvalidManifest)
    if isinstance(error, TrainerError):
        # Several problems of a manifest follow its name, each on a line.
        subject, *lines = error.message.split("\n  ")
        problems = [f"{subject} {line}" for line in lines]
        is_invalid = error.reason is Reason.CONFIG_INVALID
    for line in problems or [str(error)]:
        print_error(line)
    if isinstance(error, WaitTimeout):
        return EXIT_TIMEOUT
    return EXIT_USAGE if is_invalid else EXIT_FAILURE


def print_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected exception on one line, or with its traceback if `$FINETUNE_DEBUG` is set."""
    if os.environ.get(DEBUG_ENV):
        traceback.print_exception(kind, error, trace)
    hint = f"please report it; {DEBUG_ENV}=1 prints the traceback"
    print_error(f"this is a bug of finetune: {kind.__name__}: {error}; {hint}")
