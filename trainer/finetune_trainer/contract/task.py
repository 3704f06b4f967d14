"""The contract of task pods: `TaskConfig`, the input of a task, and `TaskOutcome`, its termination message.

A task is work in S3 outside of a run. The operator cannot do it, because it has no S3 keys.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from finetune_trainer.contract.base import Count, Model, ObjectName, Uri
from finetune_trainer.contract.comparison import MetricChange
from finetune_trainer.contract.config import Signing, Storage
from finetune_trainer.contract.dataset import DataSource
from finetune_trainer.contract.evaluation import MetricName, ResultDigest
from finetune_trainer.contract.outcome import Reason, StepResult
from finetune_trainer.contract.sweep import MAX_TRIALS, Configuration

ShortText = Annotated[str, StringConstraints(max_length=64)]
Message = Annotated[str, StringConstraints(max_length=1024)]
ResultUri = Annotated[str, StringConstraints(max_length=1100)]
OwnerName = Annotated[str, StringConstraints(max_length=320)]
"""`namespace/name` of a FineTuneSchedule or a FineTuneSweep."""


class CleanTask(Model):
    """CleanTask deletes the checkpoints of ended runs at an output, and what interrupted uploads have left there."""

    output_uri: Uri = Field(alias="outputURI")
    """outputURI is the S3 prefix of the output, with its placeholders replaced."""
    min_age_seconds: int = Field(ge=0)
    """minAgeSeconds is the number of seconds that the newest object of a configuration's checkpoints must be old, by
    the clock of the store. Checkpoints of configurations with a newer object are kept."""
    not_before: ShortText | None = None
    """notBefore is the earliest time at which anything is deleted (RFC 3339), by the clock of the store. Before it, the
    task does nothing."""


class CheckInputsTask(Model):
    """CheckInputsTask lists the inputs of a run that does not exist yet, and compares them with those of a result."""

    model_uri: Uri = Field(alias="modelURI")
    """modelURI is the location of the base model."""
    model_revision: Annotated[str, StringConstraints(max_length=255)] | None = None
    """modelRevision is the branch, tag or commit of an `hf://` model."""
    sources: list[DataSource] = Field(min_length=1, max_length=24)
    """sources are the locations of the rows for training, validation and test, in this order."""
    output_uri: Uri = Field(alias="outputURI")
    """outputURI is where the run would publish its result. Files below it are not inputs."""
    result_uri: Uri | None = Field(default=None, alias="resultURI")
    """resultURI is the S3 prefix of the last complete run, whose manifest has its inputs. If unset, there is none."""
    result_digest: ResultDigest | None = None
    """resultDigest is the digest of that result. A manifest with another one counts as no result."""


class ResultReference(Model):
    """ResultReference identifies a published result."""

    run: ObjectName
    """run is the name of the FineTuneJob that published the result."""
    adapter_uri: ResultUri = Field(alias="adapterURI")
    """adapterURI is the S3 prefix of the adapter."""
    digest: ResultDigest
    """digest is the digest of its `manifest.json`."""


class PromoteTask(Model):
    """PromoteTask writes the alias of a FineTuneSchedule: one JSON object in S3 that names the champion."""

    alias_uri: Uri = Field(alias="aliasURI")
    """aliasURI is the S3 URI of the object."""
    schedule: OwnerName
    """schedule is the FineTuneSchedule."""
    champion: ResultReference
    """champion is the result that the alias names from now on."""
    metrics: dict[ShortText, float] = Field(default={}, max_length=32)
    """metrics are the metrics of the champion."""
    predecessor: ResultReference | None = None
    """predecessor is the result that the alias names now. If unset, the object must not exist."""
    promoted_time: ShortText
    """promotedTime is the time of the promotion (RFC 3339)."""
    overwrite: bool = False
    """overwrite replaces the object whatever it contains. Otherwise the task ends with `AliasConflict` if the object
    names neither the predecessor nor the champion."""
    signing: Signing | None = None
    """signing configures the signature of the alias. If unset, it is not signed."""


class RunHistoryRow(Model):
    """RunHistoryRow is one run of a FineTuneSchedule in its report."""

    run: ObjectName
    trigger: ShortText
    scheduled_time: ShortText
    completion_time: ShortText | None = None
    phase: ShortText
    decision: ShortText | None = None
    """decision is the reason of the decision about the run, such as `Promoted` or `NotBetter`."""
    message: Annotated[str, StringConstraints(max_length=256)] = ""
    """message is the decision as a sentence."""
    adapter_uri: ResultUri | None = Field(default=None, alias="adapterURI")
    metrics: dict[ShortText, float] = Field(default={}, max_length=8)
    changes: list[MetricChange] = Field(default=[], max_length=8)
    """changes are the changes from the champion of that time to the run."""
    is_champion: bool = False
    """isChampion tells whether the run is the champion now."""


class ScheduleReportTask(Model):
    """ScheduleReportTask writes the report of a FineTuneSchedule: its runs as one table."""

    report_uri: Uri = Field(alias="reportURI")
    """reportURI is the S3 URI of the HTML page."""
    schedule: OwnerName
    """schedule is the FineTuneSchedule."""
    rows: list[RunHistoryRow] = Field(default=[], max_length=50)
    """rows are the runs, the newest first."""


class TrialRow(Model):
    """TrialRow is one trial of a FineTuneSweep in its report."""

    name: ObjectName
    configuration: int = Field(ge=1, le=MAX_TRIALS)
    """configuration numbers the combinations of parameters. Trials with the same number differ by their seed only."""
    parameters: Configuration
    seed: Count
    phase: ShortText
    reason: ShortText | None = None
    value: float | None = None
    """value is the objective of a complete trial."""
    steps: list[StepResult] = Field(default=[], max_length=8)
    """steps are the results at the steps of halving."""
    cut_at_step: Count | None = None
    """cutAtStep is the step at which halving ended the trial."""
    gpu_seconds: Count | None = None
    adapter_uri: ResultUri | None = Field(default=None, alias="adapterURI")
    digest: ResultDigest | None = None


class SweepReportTask(Model):
    """SweepReportTask compares the trials of a FineTuneSweep and writes `sweep.json`, `report.html`, `best.json`."""

    output_uri: Uri = Field(alias="outputURI")
    """outputURI is the S3 prefix of these files."""
    sweep: OwnerName
    """sweep is the FineTuneSweep."""
    objective: MetricName
    """objective is the name of the metric that the trials are ranked by."""
    trials: list[TrialRow] = Field(default=[], max_length=MAX_TRIALS)
    """trials are all trials."""
    ranking: list[Annotated[int, Field(ge=1, le=MAX_TRIALS)]] = Field(default=[], max_length=MAX_TRIALS)
    """ranking are the numbers of the configurations with complete trials, the best first."""


class TaskConfig(Model):
    """TaskConfig is the configuration of a task pod: the access to S3 and one task."""

    storage: Storage = Storage()
    """storage configures the access to S3."""
    clean: CleanTask | None = None
    """clean deletes the checkpoints of ended runs."""
    check_inputs: CheckInputsTask | None = None
    """checkInputs finds out whether inputs have changed."""
    promote: PromoteTask | None = None
    """promote writes the alias of a FineTuneSchedule."""
    schedule_report: ScheduleReportTask | None = None
    """scheduleReport writes the report of a FineTuneSchedule."""
    sweep_report: SweepReportTask | None = None
    """sweepReport writes the report of a FineTuneSweep."""

    @model_validator(mode="after")
    def _check_one_task(self) -> Self:
        tasks = (self.clean, self.check_inputs, self.promote, self.schedule_report, self.sweep_report)
        if sum(task is not None for task in tasks) != 1:
            raise ValueError("exactly one task must be set")
        return self


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


class InputsReport(Model):
    """InputsReport describes the inputs that a `CheckInputsTask` has found."""

    digest: ResultDigest
    """digest is `sha256:…` over the URI, the size and the ETag or hub commit of all inputs."""
    files: Count
    """files is the number of data files."""
    bytes: Count
    """bytes is the size of the data files, in bytes."""
    has_result: bool
    """hasResult tells whether there is a result to compare with. Without one, the fields below are at their
    defaults."""
    unchanged: bool = False
    """unchanged tells whether the inputs are those of the result."""
    added_bytes: Count = 0
    """addedBytes is the size of the files that the result does not have, and what files have grown by."""
    removed_files: Count = 0
    """removedFiles is the number of files of the result that no longer exist, or were replaced without growing."""
    model_changed: bool = False
    """modelChanged tells whether the base model is another one."""


class PromoteReport(Model):
    """PromoteReport describes the alias that a `PromoteTask` has written."""

    etag: Annotated[str, StringConstraints(max_length=128)]
    """etag is the ETag of the object."""
    signed: bool = False
    """signed tells whether the alias is signed."""


class ScheduleReport(Model):
    """ScheduleReport names the page that a `ScheduleReportTask` has written."""

    report_uri: ResultUri = Field(alias="reportURI")
    """reportURI is the S3 URI of the HTML page."""


class SweepReport(Model):
    """SweepReport is the result of the comparison by a `SweepReportTask`."""

    report_uri: ResultUri = Field(alias="reportURI")
    """reportURI is the S3 URI of `report.html`."""
    verdict: Literal["Better", "Inconclusive", "NotCompared"]
    """verdict tells whether the best configuration is better than the second one: `Better`, `Inconclusive` if the
    difference may be chance, or `NotCompared` without a second one or without common rows."""
    message: Message
    """message is the verdict as a sentence."""
    change: MetricChange | None = None
    """change is the change from the second configuration to the best one."""
    test: dict[ShortText, float] = Field(default={}, max_length=8)
    """test are the metrics of the best trial on `evaluation.test`."""


class TaskOutcome(Model):
    """TaskOutcome is the termination message of a task pod: at most `OUTCOME_MAX_BYTES` as JSON."""

    reason: Reason
    """reason is the reason why the task ended. `Completed` means that it has done its work."""
    message: Annotated[str, StringConstraints(max_length=2048)]
    """message says what happened, where, and what to do."""
    clean: CleanReport | None = None
    """clean counts what a completed `CleanTask` has deleted."""
    inputs: InputsReport | None = None
    """inputs describes what a completed `CheckInputsTask` has found."""
    promote: PromoteReport | None = None
    """promote describes what a completed `PromoteTask` has written."""
    schedule_report: ScheduleReport | None = None
    """scheduleReport describes what a completed `ScheduleReportTask` has written."""
    sweep_report: SweepReport | None = None
    """sweepReport is the result of a completed `SweepReportTask`."""
