"""The error that ends a run."""

from __future__ import annotations

from finetune_trainer.contract import Reason


class TrainerError(Exception):
    """An error with a reason and a message that says what is wrong, where, and what to do.

    Any other exception that reaches the command line is reported as a bug (`InternalError`).
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
