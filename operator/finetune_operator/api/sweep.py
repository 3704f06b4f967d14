"""The kind FineTuneSweep: FineTuneJobs with different hyperparameters, and the best of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_operator.api.spec import ObjectMeta
from finetune_operator.api.status import Condition, Phase, Timestamp
from finetune_operator.api.template import NO_TEST_METRIC, RunTemplate
from finetune_trainer.contract import (
    DEFAULT_PARAMETERS,
    MAX_TRIALS,
    NO_PARENT,
    SHORT_IN_BYTES,
    SWEEP_RULES,
    Configuration,
    Count,
    Halving,
    MetricChange,
    MetricName,
    Model,
    ResultDigest,
    Search,
    StepResult,
    SweepParameters,
    Uri,
    cel_rules,
    s3_uri_rule,
    uri_text_rule,
)

SWEEP_KIND = "FineTuneSweep"
SWEEP_PLURAL = "finetunesweeps"
_MAX_GPU_SECONDS = 2**53 - 1
_IMMUTABLE_MESSAGE = "is immutable; create a new FineTuneSweep"
RunName = Annotated[str, StringConstraints(max_length=63)]
ReasonText = Annotated[str, StringConstraints(max_length=64)]
ResultUri = Annotated[str, StringConstraints(max_length=1100)]


class SweepReason(StrEnum):
    """Reasons of the conditions of a FineTuneSweep."""

    TRIALS_PENDING = "TrialsPending"  # no trial has been created yet
    TRIALS_ACTIVE = "TrialsActive"  # trials are under way
    SUSPENDING = "Suspending"  # spec.suspend is set and a trial is saving a checkpoint
    SUSPENDED = "Suspended"  # spec.suspend is set and no trial is active
    BUDGET_EXHAUSTED = "BudgetExhausted"  # the trials have used the budget
    CANCELLING = "Cancelling"  # spec.cancel is set and a trial is terminating
    CANCELLED = "Cancelled"  # spec.cancel is set and no trial is active
    REPORTING = "Reporting"  # all trials have ended, and they are compared
    COMPLETED = "Completed"  # the best configuration is known and the report is written
    TOO_MANY_FAILED_TRIALS = "TooManyFailedTrials"  # more trials failed than maxFailed
    NO_COMPLETE_TRIAL = "NoCompleteTrial"  # all trials have ended without a result
    TRIAL_REFUSED = "TrialRefused"  # the API server rejects a trial
    REPORT_FAILED = "ReportFailed"  # the trials could not be compared
    INVALID_SPEC = "InvalidSpec"  # the stored spec is not valid for this operator's version
    NOT_ALLOWED = "NotAllowed"  # a trial asks for more than this installation allows
    NAME_CONFLICT = "NameConflict"  # a FineTuneJob with the name of a trial has another owner


class SweepEventReason(StrEnum):
    """Reasons of Events about a FineTuneSweep that are not about a condition."""

    TRIAL_CREATED = "TrialCreated"  # the FineTuneJob of a trial was created
    TRIAL_CUT = "TrialCut"  # halving has ended a trial


class Objective(Model):
    """Objective is the metric that trials are ranked by."""

    model_config = ConfigDict(json_schema_extra=cel_rules(NO_TEST_METRIC))

    metric: MetricName = "evalLoss"
    """metric is the name of a metric of the validation data, such as `evalLoss` or `accuracy`, or
    `crossValidationLoss`. The trials must measure it. Lower values are better for losses and perplexities, higher
    values for all others. Defaults to evalLoss."""


class SweepBudget(Model):
    """SweepBudget limits what all trials together may use. At the limit, the sweep is suspended."""

    gpu_seconds: int = Field(ge=1, le=_MAX_GPU_SECONDS)
    """gpuSeconds is the maximum of `status.gpuSeconds`. What a running trial uses is counted when its status changes,
    such as with its progress, so that trials may exceed the limit until then. `template.spec.budget` limits each
    trial at once."""


class SweepOutput(Model):
    """SweepOutput is the location of the report."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            s3_uri_rule("uri"),
            uri_text_rule("uri"),
            (
                "!self.uri.contains('*') && !self.uri.contains('?') && !self.uri.contains('{') "
                "&& !self.uri.contains('}')",
                "uri must not contain wildcards or braces",
            ),
            NO_PARENT,
            SHORT_IN_BYTES,
        )
    )

    uri: Uri
    """uri is the S3 prefix of `report.html`, `sweep.json` and `best.json`, such as `s3://adapters/lr/`."""


class FineTuneSweepSpec(Model):
    """FineTuneSweepSpec is the specification of a sweep: the template of its trials and the parameters that they
    vary."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("self.template == oldSelf.template", f"template {_IMMUTABLE_MESSAGE}"),
            ("self.parameters == oldSelf.parameters", f"parameters {_IMMUTABLE_MESSAGE}"),
            ("self.seeds == oldSelf.seeds", f"seeds {_IMMUTABLE_MESSAGE}"),
            ("self.search == oldSelf.search", f"search {_IMMUTABLE_MESSAGE}"),
            ("self.objective == oldSelf.objective", f"objective {_IMMUTABLE_MESSAGE}"),
            (
                "has(self.halving) == has(oldSelf.halving) && (!has(self.halving) || self.halving == oldSelf.halving)",
                f"halving {_IMMUTABLE_MESSAGE}",
            ),
            ("self.output == oldSelf.output", f"output {_IMMUTABLE_MESSAGE}"),
            ("!oldSelf.cancel || self.cancel", "cancel cannot be undone; create a new FineTuneSweep"),
            *SWEEP_RULES,
        )
    )

    template: RunTemplate
    """template is the template of the trials."""
    parameters: SweepParameters = DEFAULT_PARAMETERS
    """parameters are the parameters that the trials vary. Defaults to the learning rates 1e-4, 3e-4 and 1e-3."""
    seeds: int = Field(default=1, ge=1, le=10)
    """seeds is the number of trials of each configuration, with the seeds `training.seed`, `training.seed` + 1 and so
    on. 3 show how much results vary by chance. Defaults to 1."""
    search: Search = Search()
    """search configures which configurations of the parameters are tried."""
    objective: Objective = Objective()
    """objective is the metric that trials are ranked by."""
    halving: Halving | None = None
    """halving ends the worst trials early. If unset, all trials are trained to the end."""
    max_parallel: int = Field(default=1, ge=1, le=MAX_TRIALS)
    """maxParallel is the maximum number of trials that run at the same time. Defaults to 1."""
    max_failed: int = Field(default=3, ge=0, le=MAX_TRIALS)
    """maxFailed is the number of trials that may fail. One more fails the sweep and cancels the others. Defaults to
    3."""
    budget: SweepBudget | None = None
    """budget limits what all trials together may use. At the limit, the sweep is suspended; raise the limit to
    continue. If unset, there is no limit."""
    output: SweepOutput
    """output is the location of the report."""
    suspend: bool = False
    """suspend suspends the sweep: its trials save a checkpoint, and no new ones are created. Set it to false to resume.
    Defaults to false."""
    cancel: bool = False
    """cancel ends the sweep for good: its trials are cancelled. Results of complete trials stay. Defaults to false."""


class TrialStatus(Model):
    """TrialStatus is one trial of a sweep."""

    name: RunName
    """name is the name of the FineTuneJob."""
    configuration: int = Field(ge=1, le=MAX_TRIALS)
    """configuration numbers the combinations of parameters. Trials with the same number differ by their seed only."""
    parameters: Configuration
    """parameters are the values of the parameters."""
    seed: Count
    """seed is `training.seed` of the trial."""
    created: bool = False
    """created tells whether the FineTuneJob was created."""
    phase: ReasonText | None = None
    """phase is the phase of the FineTuneJob."""
    reason: ReasonText | None = None
    """reason is the reason of the FineTuneJob, or `TrialDeleted` if somebody has deleted it."""
    value: float | None = None
    """value is the objective of a complete trial."""
    steps: list[StepResult] = Field(default=[], max_length=8)
    """steps are the results at the steps of halving."""
    cut_at_step: Count | None = None
    """cutAtStep is the step at which halving ended the trial."""
    gpu_seconds: Count | None = None
    """gpuSeconds is what the trial has used so far."""
    adapter_uri: ResultUri | None = Field(default=None, alias="adapterURI")
    """adapterURI is the S3 prefix of the adapter."""
    digest: ResultDigest | None = None
    """digest is the digest of the result."""


class BestTrial(Model):
    """BestTrial is the best configuration of a sweep."""

    name: RunName
    """name is the name of the FineTuneJob: of several seeds, the first one that is complete."""
    configuration: int = Field(ge=1, le=MAX_TRIALS)
    """configuration is the number of the configuration."""
    parameters: Configuration
    """parameters are the values of the parameters."""
    value: float
    """value is the objective: of several seeds, the mean."""
    deviation: float | None = None
    """deviation is the sample standard deviation of the objective over the seeds."""
    adapter_uri: ResultUri = Field(alias="adapterURI")
    """adapterURI is the S3 prefix of the adapter."""
    digest: ResultDigest
    """digest is the digest of the result."""
    runner_up: RunName | None = None
    """runnerUp is the name of the second best FineTuneJob."""
    verdict: Literal["Better", "Inconclusive", "NotCompared"] | None = None
    """verdict tells whether the best configuration is better than the second one: `Better`, `Inconclusive` if the
    difference may be chance, or `NotCompared`."""
    message: Annotated[str, StringConstraints(max_length=1024)] = ""
    """message is the verdict as a sentence."""
    change: MetricChange | None = None
    """change is the change of the objective from the second configuration to the best one, on the same rows."""
    test: dict[ReasonText, float] = Field(default={}, max_length=8)
    """test are the metrics of the best trial on `evaluation.test`, which did not choose it."""


class TrialCounts(Model):
    """TrialCounts counts the trials."""

    total: Count = 0
    """total is the number of all trials."""
    active: Count = 0
    """active is the number of trials that run."""
    complete: Count = 0
    """complete is the number of trials with a result."""
    cut: Count = 0
    """cut is the number of trials that halving has ended."""
    failed: Count = 0
    """failed is the number of trials that failed or were deleted."""
    finished: Annotated[str, StringConstraints(max_length=16)] | None = None
    """finished is the number of trials that have ended, and of all, such as `4/6`."""


class FineTuneSweepStatus(Model):
    """FineTuneSweepStatus is the observed state of a FineTuneSweep."""

    observed_generation: int | None = Field(default=None, ge=0)
    """observedGeneration is the generation of the spec that this status is based on."""
    phase: Phase | None = None
    """phase is a one-word summary for users. Tools should use the conditions."""
    reason: ReasonText | None = None
    """reason is the reason of the condition that `phase` is based on."""
    conditions: list[Condition] = Field(default=[], max_length=16, json_schema_extra={
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    })  # fmt: skip
    """conditions are the latest observations, with the types of a FineTuneJob's."""
    start_time: Timestamp | None = None
    """startTime is the time when the first trial was created (RFC 3339)."""
    completion_time: Timestamp | None = None
    """completionTime is the time when the sweep completed, failed or was cancelled (RFC 3339)."""
    counts: TrialCounts = TrialCounts()
    """counts are the numbers of trials."""
    gpu_seconds: Count | None = None
    """gpuSeconds is what all trials together have used."""
    trials: list[TrialStatus] = Field(default=[], max_length=MAX_TRIALS)
    """trials are all trials, in the order in which they are created."""
    compared_at_step: Count | None = None
    """comparedAtStep is the last step of halving at which the trials were compared. They are compared once at each
    step."""
    best: BestTrial | None = None
    """best is the best configuration."""
    report_uri: ResultUri | None = Field(default=None, alias="reportURI")
    """reportURI is the S3 URI of the report."""


class FineTuneSweep(Model):
    """FineTuneSweep trains FineTuneJobs with different hyperparameters and reports which are the best."""

    model_config = ConfigDict(extra="ignore")

    metadata: ObjectMeta
    """metadata is the standard metadata of the object."""
    spec: FineTuneSweepSpec
    """spec is the desired sweep."""
    status: FineTuneSweepStatus | None = None
    """status is the observed state of the sweep."""
