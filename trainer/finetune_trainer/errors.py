"""The one error that a run ends with: its reason tells what to do, its message what and where."""

from __future__ import annotations

from finetune_trainer.contract import Reason


class TrainerError(Exception):
    """Ends the run with `reason`. Anything else that is raised is a bug (`InternalError`)."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
