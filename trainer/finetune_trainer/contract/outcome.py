"""Reports of a run: `Progress` and `CheckpointRecord` while it runs, `Outcome` when it ends."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_trainer.contract.base import Count, Model
from finetune_trainer.contract.comparison import BaselineComparison, Verdicts


class ExitCode(IntEnum):
    """Exit codes that the Job's `podFailurePolicy` distinguishes."""

    OK = 0  # a result is published
    INTERNAL = 1  # a bug or a transient fault: counted, retried
    PERMANENT = 42  # another attempt would fail in the same way: the Job fails immediately
    TRANSIENT = 75  # a transient error outside of the trainer: counted, retried
    PEER_LOST = 76  # another rank ended, and its exit code decides: not counted, restarted
    PREEMPTED = 143  # terminated by SIGTERM: not counted, restarted


class Reason(StrEnum):
    """Reasons why a run ended. Conditions, events and logs use the same names."""

    COMPLETED = "Completed"  # the result is published
    STEP_REACHED = "StepReached"  # the training is at FINETUNE_SUSPEND_AT_STEP; it is evaluated and saved
    ALREADY_COMPLETE = "AlreadyComplete"  # the result of the same run already exists; nothing was trained
    CONFIG_INVALID = "ConfigInvalid"  # the config violates a rule
    DATA_NOT_FOUND = "DataNotFound"  # bucket, key or prefix does not exist or is empty
    DATA_INVALID = "DataInvalid"  # a row cannot be read
    DATASET_EMPTY = "DatasetEmpty"  # no rows remain to train on
    OUTPUT_NOT_FOUND = "OutputNotFound"  # the output's bucket does not exist
    MODEL_NOT_FOUND = "ModelNotFound"  # there is no model at model.uri
    MODEL_INVALID = "ModelInvalid"  # the files are not a model that can be loaded
    MODEL_UNSUPPORTED = "ModelUnsupported"  # a preflight check found that this model cannot be trained correctly
    AUTH_FAILED = "AuthFailed"  # credentials are missing, wrong or expired
    ACCESS_DENIED = "AccessDenied"  # credentials are valid but lack permission
    STORAGE_UNREACHABLE = "StorageUnreachable"  # the endpoint does not respond
    STORAGE_CORRUPT = "StorageCorrupt"  # content differs from the checksum or size in S3
    OUTPUT_EXISTS = "OutputExists"  # output.uri contains another run's result or other files
    OUTPUT_BUSY = "OutputBusy"  # another run is writing to output.uri
    INPUTS_CHANGED = "InputsChanged"  # output.uri contains a result of this run from other inputs
    ALIAS_CONFLICT = "AliasConflict"  # the alias of a schedule contains something that the schedule did not write
    EVALUATION_GATE = "EvaluationGate"  # the fine-tuned model does not pass evaluation.gate; it is not published
    GRADER_FAILED = "GraderFailed"  # a grader could not score too many answers; the checkpoint is kept
    OUT_OF_MEMORY = "OutOfMemory"  # GPU or host memory is too small
    DISK_FULL = "DiskFull"  # scratch is too small
    NON_FINITE_LOSS = "NonFiniteLoss"  # the loss became NaN or infinite
    NO_LEARNING_SIGNAL = "NoLearningSignal"  # nearly all answers to a prompt have equal rewards
    TRAINING_STALLED = "TrainingStalled"  # no progress for training.stallSeconds
    PREEMPTED = "Preempted"  # terminated by SIGTERM
    PEER_LOST = "PeerLost"  # another rank of the run ended or became unreachable
    PEERS_MISSING = "PeersMissing"  # not all nodes of the run joined the rendezvous in time
    INTERNAL_ERROR = "InternalError"  # a bug

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of the process for this reason."""
        return _EXIT_CODES.get(self, ExitCode.PERMANENT)


_EXIT_CODES = {
    Reason.COMPLETED: ExitCode.OK,
    Reason.ALREADY_COMPLETE: ExitCode.OK,
    Reason.STEP_REACHED: ExitCode.OK,
    Reason.STORAGE_UNREACHABLE: ExitCode.TRANSIENT,
    Reason.STORAGE_CORRUPT: ExitCode.TRANSIENT,
    Reason.OUTPUT_BUSY: ExitCode.TRANSIENT,
    Reason.TRAINING_STALLED: ExitCode.TRANSIENT,
    Reason.GRADER_FAILED: ExitCode.TRANSIENT,
    Reason.PREEMPTED: ExitCode.PREEMPTED,
    Reason.PEER_LOST: ExitCode.PEER_LOST,
    Reason.PEERS_MISSING: ExitCode.TRANSIENT,
    Reason.INTERNAL_ERROR: ExitCode.INTERNAL,
}


class Stage(StrEnum):
    """Stages of a run."""

    WAITING_FOR_OUTPUT = "WaitingForOutput"  # another run may still be writing to the output
    DOWNLOADING = "Downloading"
    PREPARING = "Preparing"
    LOADING = "Loading"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    EXPORTING = "Exporting"
    UPLOADING = "Uploading"
    DONE = "Done"


class Progress(Model):
    """Progress is the progress of a run as last reported by the trainer."""

    stage: Stage
    """stage is the current stage of the run."""
    percentage: int = Field(default=0, ge=0, le=100)
    """percentage is the share of the optimizer steps that are done, in percent. It is 100 only when the result is
    published."""
    step: Count | None = None
    """step is the number of optimizer steps done. With `training.crossValidation` it counts the steps of all folds and
    of the final training."""
    total_steps: Count | None = None
    """totalSteps is the total number of optimizer steps, counted like `step`."""
    epoch: float | None = Field(default=None, ge=0)
    """epoch is the number of passes over the data done. With `training.crossValidation` it counts those of the current
    training."""
    reward: float | None = None
    """reward is the mean reward of the answers of the last step, with `grpo` and `rloo`."""
    flat_groups: float | None = Field(default=None, ge=0, le=1)
    """flatGroups is the fraction of the prompts of the last step whose answers all have the same reward, from which
    nothing is learned."""
    entropy: float | None = None
    """entropy is the mean entropy of the tokens of the last step, in nats. Near 0, all answers are the same."""
    answer_tokens: float | None = None
    """answerTokens is the mean length of the answers of the last step, in tokens."""
    loss: float | None = None
    """loss is the mean training loss of the last logged step: per supervised token for `sft`, per row for `dpo` and
    `kto`."""
    eval_loss: float | None = None
    """evalLoss is the mean loss on the validation data at the last evaluation: per supervised token for `sft`, per row
    for `dpo` and `kto`."""
    tokens_per_second: float | None = Field(default=None, ge=0)
    """tokensPerSecond is the number of tokens trained per second, without padding."""
    estimated_remaining_seconds: Count | None = None
    """estimatedRemainingSeconds is the estimated time until the end of the training at the speed of this attempt, in
    seconds."""
    last_checkpoint_step: Count | None = None
    """lastCheckpointStep is the optimizer step of the latest complete checkpoint in S3, counted like `step`."""
    last_checkpoint_time: Annotated[str, StringConstraints(max_length=64)] | None = None
    """lastCheckpointTime is the time when the latest checkpoint was completed (RFC 3339)."""
    last_update_time: Annotated[str, StringConstraints(max_length=64)]
    """lastUpdateTime is the time of this report (RFC 3339)."""


class DatasetReport(Model):
    """DatasetReport accounts for every row: rows = kept + validation + test + the sum of rejected."""

    rows: Count
    """rows is the number of rows read from training, validation and test sources."""
    kept: Count
    """kept is the number of rows to train on."""
    augmented: Count = 0
    """augmented is the number of additional rows to train on: copies with swapped terms from
    `dataset.preparation.counterfactuals`."""
    validation: Count = 0
    """validation is the number of rows held out for validation."""
    test: Count | None = None
    """test is the number of rows of `evaluation.test`. It is unset without test data."""
    rejected: dict[Annotated[str, StringConstraints(max_length=64)], Count] = Field(default={}, max_length=16)
    """rejected is the number of dropped rows by reason."""
    cleaned: Count = 0
    """cleaned is the number of kept rows whose text was normalized."""
    truncated: Count = 0
    """truncated is the number of kept rows that were cut to `model.maxLength`."""
    sensitive: dict[Annotated[str, StringConstraints(max_length=64)], Count] = Field(default={}, max_length=16)
    """sensitive is the number of kept rows that contain personal data or secrets, by kind."""
    redacted: Count = 0
    """redacted is the number of places in kept rows that were replaced by a placeholder."""
    control_tokens: Count = 0
    """controlTokens is the number of kept rows with the text of a control token, such as `<|im_end|>`."""
    skipped_files: Count = 0
    """skippedFiles is the number of files in folders of the sources that are left out: hidden and temporary files,
    results of runs and files that contain no rows. The log names them."""
    tokens: Count
    """tokens is the number of tokens in the rows to train on."""
    supervised_tokens: Count
    """supervisedTokens is the number of tokens in the rows to train on that the loss is computed for."""
    digest: Annotated[str, StringConstraints(max_length=80)]
    """digest is `sha256:…` over the URIs and content digests of all input objects."""


class Servable(Model):
    """Servable says for each inference server whether it loads the adapter: a text that begins with `Yes`, `No` or
    `Unknown`, and that says why not and what to do, or which setting is needed."""

    vllm: Annotated[str, StringConstraints(max_length=320)]
    """vllm is whether vLLM loads the adapter, such as `Yes, with --max-lora-rank 64`."""
    llama_cpp: Annotated[str, StringConstraints(max_length=320)]
    """llamaCpp is whether llama.cpp, and Ollama with it, loads the adapter once it is converted to GGUF."""
    peft: Annotated[str, StringConstraints(max_length=320)]
    """peft is whether PEFT loads the adapter, which every run checks before it publishes."""


class Result(Model):
    """Result describes the published result."""

    adapter_uri: Annotated[str, StringConstraints(max_length=1024)] = Field(alias="adapterURI")
    """adapterURI is the S3 prefix of the adapter."""
    report_uri: Annotated[str, StringConstraints(max_length=1100)] | None = Field(default=None, alias="reportURI")
    """reportURI is the S3 URI of the HTML report: the inputs of the run, how the model changed, and recommended next
    steps."""
    merged_uri: Annotated[str, StringConstraints(max_length=1100)] | None = Field(default=None, alias="mergedURI")
    """mergedURI is the S3 prefix of the merged model. It is unset if the merged model was not requested or could not be
    published."""
    gguf_uri: Annotated[str, StringConstraints(max_length=1100)] | None = Field(default=None, alias="ggufURI")
    """ggufURI is the S3 prefix of the GGUF files for llama.cpp and Ollama. It is unset if they were not requested or
    could not be published."""
    digest: Annotated[str, StringConstraints(max_length=80)]
    """digest is `sha256:…` of `manifest.json`, which lists the digests of all files."""
    model_revision: Annotated[str, StringConstraints(max_length=255)]
    """modelRevision is the hub commit of the base model, or a digest of its files."""
    metrics: dict[Annotated[str, StringConstraints(max_length=64)], float] = Field(default={}, max_length=64)
    """metrics are the metrics of the complete run, such as `trainLoss`, `trainSeconds` and `tokens`."""
    verdicts: Verdicts | None = None
    """verdicts are the conclusions of the evaluation. They are unset if an earlier version has published the result."""
    baselines: list[BaselineComparison] | None = Field(default=None, max_length=4)
    """baselines compare the result with `evaluation.baselines`."""
    servable: Servable | None = None
    """servable says which inference servers load the adapter. It is unset if an earlier version has published the
    result."""


class CacheResult(StrEnum):
    """Where the base model of a run came from."""

    HIT = "Hit"  # read from the cache
    FILLED = "Filled"  # downloaded into the cache and read from it
    MISS = "Miss"  # downloaded to scratch, because the cache could not be used


class StepResult(Model):
    """StepResult is the evaluation of a training at `suspendAtStep`."""

    step: Count
    """step is the optimizer step of the evaluation."""
    eval_loss: float
    """evalLoss is the mean loss on the validation data: per supervised token for `sft`, per row for `dpo` and
    `kto`. Without validation data it is the mean training loss of the last logged step."""
    eval_loss_low: float | None = None
    """evalLossLow is the lower end of the 95 % confidence interval of `evalLoss`. It is unset without validation
    data, if the validation data has too few rows, and for `dpo` and `kto`."""
    eval_loss_high: float | None = None
    """evalLossHigh is the upper end of the 95 % confidence interval of `evalLoss`."""


class StoredCheckpoint(Model):
    """StoredCheckpoint is a complete checkpoint in S3."""

    time: Annotated[str, StringConstraints(max_length=64)]
    """time is the time when the checkpoint was completed (RFC 3339)."""
    step: Count
    """step is the optimizer step of the checkpoint, counted like `Progress.step`."""


class CheckpointRecord(Model):
    """CheckpointRecord is the termination message of a run that has not ended. It tells the operator which checkpoint
    exists if the run is killed.

    It shares no field with `Outcome`, so that a reader cannot confuse them.
    """

    checkpoint: StoredCheckpoint
    """checkpoint is the latest complete checkpoint."""


class Outcome(Model):
    """Outcome is the termination message of a run that has ended: at most `OUTCOME_MAX_BYTES` as JSON."""

    reason: Reason
    """reason is the reason why the run ended, in CamelCase."""
    message: Annotated[str, StringConstraints(max_length=2048)]
    """message says what happened, where, and what to do."""
    backend: Annotated[str, StringConstraints(max_length=32)] | None = None
    """backend is the backend that was used."""
    dataset: DatasetReport | None = None
    """dataset counts the rows of the dataset by what happened to them: rows = kept + validation + test + the sum of
    rejected."""
    result: Result | None = None
    """result describes the published result."""
    log_uri: Annotated[str, StringConstraints(max_length=1100)] | None = Field(default=None, alias="logURI")
    """logURI is the S3 URI of the log of the run. The log of a failed run is below `.failed/` of the output, that of a
    rejected adapter below `.rejected/`, and that of a run that ended with `StepReached` in its checkpoint."""
    step_result: StepResult | None = None
    """stepResult is the evaluation of a run that ended with `StepReached`."""
    model_cache: CacheResult | None = None
    """modelCache says where the base model came from, if the run has a model cache."""
    progress: Progress | None = None
    """progress is the last progress of the run."""
