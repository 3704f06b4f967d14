"""What a run reports: `Progress` and `CheckpointRecord` while it runs, `Outcome` at its end."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_trainer.contract.base import Count, Model


class ExitCode(IntEnum):
    """What the Job's `podFailurePolicy` tells apart."""

    OK = 0  # a result is published
    INTERNAL = 1  # a bug or a passing fault: counted, retried
    PERMANENT = 42  # another attempt would end the same way: the Job fails at once
    TRANSIENT = 75  # the world may heal: counted, retried
    PEER_LOST = 76  # another worker of the run ended, and its own end counts: not counted, started again
    PREEMPTED = 143  # told to stop: not counted, started again


class Reason(StrEnum):
    """Why a run ended. The same words stand in conditions, events and logs."""

    COMPLETED = "Completed"  # the result is published
    ALREADY_COMPLETE = "AlreadyComplete"  # the same run's result was there; nothing was trained
    CONFIG_INVALID = "ConfigInvalid"  # the config breaks a rule
    DATA_NOT_FOUND = "DataNotFound"  # bucket, key or prefix does not exist or holds nothing
    DATA_INVALID = "DataInvalid"  # a row cannot be read
    DATASET_EMPTY = "DatasetEmpty"  # no row is left to train on
    OUTPUT_NOT_FOUND = "OutputNotFound"  # the output's bucket does not exist
    MODEL_NOT_FOUND = "ModelNotFound"  # no model at that place
    MODEL_INVALID = "ModelInvalid"  # files are there but are not a model that may be loaded
    AUTH_FAILED = "AuthFailed"  # credentials are missing, wrong or expired
    ACCESS_DENIED = "AccessDenied"  # credentials are good but may not do this
    STORAGE_UNREACHABLE = "StorageUnreachable"  # the endpoint does not answer
    STORAGE_CORRUPT = "StorageCorrupt"  # bytes differ from what the store announced
    OUTPUT_EXISTS = "OutputExists"  # another run's result or foreign files are at the output
    OUTPUT_BUSY = "OutputBusy"  # another run is at work on the output
    INPUTS_CHANGED = "InputsChanged"  # this run's result lies there, made from other inputs
    EVALUATION_GATE = "EvaluationGate"  # the tuned model does not pass evaluation.gate; it is not published
    OUT_OF_MEMORY = "OutOfMemory"  # GPU or host memory is too small
    DISK_FULL = "DiskFull"  # scratch is too small
    NON_FINITE_LOSS = "NonFiniteLoss"  # the loss became NaN or infinite
    TRAINING_STALLED = "TrainingStalled"  # nothing moved for training.stallSeconds
    PREEMPTED = "Preempted"  # told to stop
    PEER_LOST = "PeerLost"  # another worker of the run ended or cannot be reached any more
    PEERS_MISSING = "PeersMissing"  # not all workers of the run came together in time
    INTERNAL_ERROR = "InternalError"  # a bug

    @property
    def exit_code(self) -> ExitCode:
        """The process' exit status for this reason."""
        return _EXIT_CODES.get(self, ExitCode.PERMANENT)


_EXIT_CODES = {
    Reason.COMPLETED: ExitCode.OK,
    Reason.ALREADY_COMPLETE: ExitCode.OK,
    Reason.STORAGE_UNREACHABLE: ExitCode.TRANSIENT,
    Reason.STORAGE_CORRUPT: ExitCode.TRANSIENT,
    Reason.OUTPUT_BUSY: ExitCode.TRANSIENT,
    Reason.TRAINING_STALLED: ExitCode.TRANSIENT,
    Reason.PREEMPTED: ExitCode.PREEMPTED,
    Reason.PEER_LOST: ExitCode.PEER_LOST,
    Reason.PEERS_MISSING: ExitCode.TRANSIENT,
    Reason.INTERNAL_ERROR: ExitCode.INTERNAL,
}


class Stage(StrEnum):
    """What the trainer is doing."""

    WAITING_FOR_OUTPUT = "WaitingForOutput"  # another run may still be at work on the output
    DOWNLOADING = "Downloading"
    PREPARING = "Preparing"
    LOADING = "Loading"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    EXPORTING = "Exporting"
    UPLOADING = "Uploading"
    DONE = "Done"


class Progress(Model):
    """How far a run is, as the trainer last said."""

    stage: Stage
    """What the trainer is doing."""
    percentage: int = Field(default=0, ge=0, le=100)
    """Optimizer steps done, of all; 100 only when the result is published."""
    step: Count | None = None
    """Optimizer steps done; with `training.crossValidation` those of all folds and of the last training together."""
    total_steps: Count | None = None
    """Optimizer steps in all, counted as `step` is."""
    epoch: float | None = Field(default=None, ge=0)
    """Passes over the data done; with `training.crossValidation` by the training under way."""
    loss: float | None = None
    """Mean loss per learnt token of the last step that was logged."""
    eval_loss: float | None = None
    """Mean loss per learnt token of the validation data, when it was last looked at."""
    tokens_per_second: float | None = Field(default=None, ge=0)
    """Tokens trained per second, padding not counted."""
    estimated_remaining_seconds: Count | None = None
    """Seconds of training left at the pace of this attempt."""
    last_checkpoint_step: Count | None = None
    """Optimizer step of the newest checkpoint that is whole in the store, counted as `step` is."""
    last_checkpoint_time: Annotated[str, StringConstraints(max_length=64)] | None = None
    """When that checkpoint was whole (RFC 3339)."""
    last_update_time: Annotated[str, StringConstraints(max_length=64)]
    """When the trainer said so (RFC 3339)."""


class DatasetReport(Model):
    """What became of the rows: rows = kept + validation + the sum of rejected."""

    rows: Count
    """Rows read, of training and validation sources."""
    kept: Count
    """Rows trained on."""
    augmented: Count = 0
    """Rows trained on beside those: the same with terms exchanged, by `dataset.preparation.counterfactuals`."""
    validation: Count = 0
    """Rows set aside for validation."""
    rejected: dict[Annotated[str, StringConstraints(max_length=64)], Count] = Field(default={}, max_length=16)
    """Rows left out, by reason."""
    cleaned: Count = 0
    """Kept rows whose text was normalised."""
    truncated: Count = 0
    """Kept rows that were cut to `model.maxLength`."""
    sensitive: dict[Annotated[str, StringConstraints(max_length=64)], Count] = Field(default={}, max_length=16)
    """Kept rows that hold personal data or secrets, by kind."""
    redacted: Count = 0
    """Places in kept rows that were replaced by a placeholder."""
    tokens: Count
    """Tokens of the rows trained on."""
    supervised_tokens: Count
    """Tokens of the rows trained on that are learnt."""
    digest: Annotated[str, StringConstraints(max_length=80)]
    """`sha256:…` over every input object's URI and content digest."""


class Result(Model):
    """What was published."""

    adapter_uri: Annotated[str, StringConstraints(max_length=1024)] = Field(alias="adapterURI")
    """The prefix that holds the adapter."""
    report_uri: Annotated[str, StringConstraints(max_length=1100)] | None = Field(default=None, alias="reportURI")
    """A page that shows the whole run: what went in, whether it got better, what to do next."""
    merged_uri: Annotated[str, StringConstraints(max_length=1100)] | None = Field(default=None, alias="mergedURI")
    """The prefix that holds the merged model. Absent if it was not asked for or could not be published."""
    digest: Annotated[str, StringConstraints(max_length=80)]
    """`sha256:…` of `manifest.json`, which lists every file's own digest."""
    model_revision: Annotated[str, StringConstraints(max_length=255)]
    """The hub commit, or a digest of the base model's files."""
    metrics: dict[Annotated[str, StringConstraints(max_length=64)], float] = Field(default={}, max_length=32)
    """Numbers of the whole run: `trainLoss`, `trainSeconds`, `tokens`, …"""


class StoredCheckpoint(Model):
    """A checkpoint that is complete in the store."""

    time: Annotated[str, StringConstraints(max_length=64)]
    """When it was complete (RFC 3339)."""
    step: Count
    """Its optimizer step, counted as `Progress.step` is."""


class CheckpointRecord(Model):
    """The termination message of a run that has not ended: what is left of it if it is killed.

    No field of `Outcome` is in it, so no reader takes one for the other.
    """

    checkpoint: StoredCheckpoint
    """The newest."""


class Outcome(Model):
    """How a run ended: the last word of the trainer, at most `OUTCOME_MAX_BYTES` as JSON."""

    reason: Reason
    """One word."""
    message: Annotated[str, StringConstraints(max_length=2048)]
    """What, where and what to do."""
    backend: Annotated[str, StringConstraints(max_length=32)] | None = None
    """The backend that trained."""
    dataset: DatasetReport | None = None
    """What became of the rows."""
    result: Result | None = None
    """What was published."""
    progress: Progress | None = None
    """How far it came."""
