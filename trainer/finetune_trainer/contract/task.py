"""The contract of task pods: `TaskConfig`, the input of a task, and `TaskOutcome`, its termination message.

A task is work in S3 outside of a run. The operator cannot do it, because it has no S3 keys.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_trainer.contract.base import Count, Model, Uri
from finetune_trainer.contract.config import Storage
from finetune_trainer.contract.outcome import Reason


class CleanTask(Model):
    """CleanTask deletes the checkpoints of ended runs at an output, and what interrupted uploads have left there."""

    output_uri: Uri = Field(alias="outputURI")
    """outputURI is the S3 prefix of the output, with its placeholders replaced."""
    min_age_seconds: int = Field(ge=0)
    """minAgeSeconds is the number of seconds that the newest object of a configuration's checkpoints must be old, by
    the clock of the store. Checkpoints of configurations with a newer object are kept."""
    not_before: Annotated[str, StringConstraints(max_length=64)] | None = None
    """notBefore is the earliest time at which anything is deleted (RFC 3339), by the clock of the store. Before it, the
    task does nothing."""


class TaskConfig(Model):
    """TaskConfig is the configuration of a task pod."""

    storage: Storage = Storage()
    """storage configures the access to S3."""
    clean: CleanTask
    """clean deletes the checkpoints of ended runs."""


class CleanReport(Model):
    """CleanReport counts what a `CleanTask` has deleted."""

    objects: Count = 0
    """objects is the number of deleted objects."""
    bytes: Count = 0
    """bytes is the size of the deleted objects, in bytes."""
    uploads: Count = 0
    """uploads is the number of aborted multipart uploads."""
    kept: Count = 0
    """kept is the number of configurations whose checkpoints are not old enough."""


class TaskOutcome(Model):
    """TaskOutcome is the termination message of a task pod: at most `OUTCOME_MAX_BYTES` as JSON."""

    reason: Reason
    """reason is the reason why the task ended. `Completed` means that it has done its work."""
    message: Annotated[str, StringConstraints(max_length=2048)]
    """message says what happened, where, and what to do."""
    clean: CleanReport | None = None
    """clean counts what a completed `CleanTask` has deleted."""
