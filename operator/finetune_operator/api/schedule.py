"""The kind FineTuneSchedule: FineTuneJobs at times, when data changes, or on request, and the best of their results."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_operator.api.spec import ObjectMeta
from finetune_operator.api.status import Condition, Timestamp
from finetune_operator.api.template import NO_TEST_METRIC, RunTemplate
from finetune_trainer.contract import (
    CHAMPION,
    METRICS_BY_TASK,
    Count,
    MetricChange,
    MetricName,
    Model,
    ObjectName,
    ResultDigest,
    Uri,
    cel_rules,
    s3_uri_rule,
    uri_text_rule,
)

SCHEDULE_KIND = "FineTuneSchedule"
SCHEDULE_PLURAL = "finetuneschedules"
CHAMPION_BASELINE = CHAMPION
"""Name of the champion among `evaluation.baselines` of the runs."""
_MAX_SECONDS = 365 * 24 * 3600
RunName = Annotated[str, StringConstraints(max_length=63)]
ReasonText = Annotated[str, StringConstraints(max_length=64)]
ResultUri = Annotated[str, StringConstraints(max_length=1100)]
CronLine = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z*/,?@ -]+$", min_length=1, max_length=256)]
DateTime = Annotated[str, StringConstraints(max_length=64), Field(json_schema_extra={"format": "date-time"})]


class ScheduleConditionType(StrEnum):
    """Conditions of a FineTuneSchedule."""

    PROMOTED = "Promoted"  # the last complete run is the champion
    UP_TO_DATE = "UpToDate"  # the last complete run has the inputs and the template of now
    SUSPENDED = "Suspended"  # spec.suspend is set
    RECONCILING = "Reconciling"  # kstatus: the spec of now is not reconciled yet
    STALLED = "Stalled"  # kstatus: user action is required


class ScheduleReason(StrEnum):
    """Reasons of the conditions of a FineTuneSchedule."""

    ACTIVE = "Active"  # the schedule creates runs
    SUSPENDED = "Suspended"  # spec.suspend is set
    INVALID_SCHEDULE = "InvalidSchedule"  # the schedule never fires, or the time zone is unknown
    INVALID_TEMPLATE = "InvalidTemplate"  # the template is not valid for this operator's version
    NOT_ALLOWED = "NotAllowed"  # the template asks for more than this installation allows
    RUN_REFUSED = "RunRefused"  # the API server rejected the FineTuneJob
    NAME_CONFLICT = "NameConflict"  # a FineTuneJob of that name has another owner
    CHAMPION_NOT_FOUND = "ChampionNotFound"  # spec.champion.run has no result
    CHAMPION_UNUSABLE = "ChampionUnusable"  # the last run failed because the champion's adapter is not in S3 as it was
    NO_RUN = "NoRun"  # there is no complete run yet
    RUN_ACTIVE = "RunActive"  # a run is under way
    RUN_FAILED = "RunFailed"  # the last run failed
    TRAINED = "Trained"  # the last complete run has the inputs and the template of now
    INPUTS_CHANGED = "InputsChanged"  # the inputs have changed since the last complete run
    TEMPLATE_CHANGED = "TemplateChanged"  # the template has changed since the last complete run
    INPUTS_UNKNOWN = "InputsUnknown"  # the inputs have not been checked since the last complete run
    CHECK_FAILED = "CheckFailed"  # the inputs could not be listed
    PROMOTED = "Promoted"  # the run became the champion by the rules
    PINNED = "Pinned"  # the champion is set in spec.champion.run
    PROMOTING = "Promoting"  # the alias is being written
    PROMOTION_FAILED = "PromotionFailed"  # the alias could not be written
    ALIAS_CONFLICT = "AliasConflict"  # the alias contains something that this schedule did not write
    AWAITING_APPROVAL = "AwaitingApproval"  # promotion.mode is manual; set spec.champion.run
    NOT_BETTER = "NotBetter"  # the run does not meet promotion.rules
    NOT_MEASURED = "NotMeasured"  # a metric of promotion.rules or a veto was not measured
    VETOED = "Vetoed"  # a verdict in promotion.vetoes is against the run
    NOT_COMPARABLE = "NotComparable"  # the champion belongs to another base model
    HELD_OUT_ROWS_CHANGED = "HeldOutRowsChanged"  # the champion may have been trained on the validation rows
    CHAMPION_CHANGED = "ChampionChanged"  # the run was compared with an earlier champion


class ScheduleEventReason(StrEnum):
    """Reasons of Events about a FineTuneSchedule that are not about a condition."""

    RUN_CREATED = "RunCreated"  # a FineTuneJob was created
    RUN_SKIPPED = "RunSkipped"  # the inputs and the template are those of the last complete run
    RUN_REPLACED = "RunReplaced"  # concurrencyPolicy Replace has cancelled a run
    RUN_DELETED = "RunDeleted"  # a FineTuneJob above the history limit was deleted
    MISSED_SCHEDULE = "MissedSchedule"  # a start was missed by more than startingDeadlineSeconds
    TOO_MANY_MISSED_TIMES = "TooManyMissedTimes"  # more than 100 starts were missed
    NOT_PROMOTED = "NotPromoted"  # a complete run did not become the champion
    REPORT_FAILED = "ReportFailed"  # the history of the runs could not be written; the next decision tries it again


class Trigger(StrEnum):
    """What a run of a schedule was created for."""

    SCHEDULE = "Schedule"  # a time of spec.schedule
    DATA_CHANGE = "DataChange"  # spec.onDataChange
    REQUEST = "Request"  # spec.runAt


class OnDataChange(Model):
    """OnDataChange configures runs that are created when the data has changed."""

    check_interval_seconds: int = Field(default=3600, ge=60, le=_MAX_SECONDS)
    """checkIntervalSeconds is the number of seconds between two checks. Each check is a pod without a GPU that lists
    the data. Defaults to 3600."""
    min_interval_seconds: int = Field(default=86400, ge=0, le=_MAX_SECONDS)
    """minIntervalSeconds is the minimum number of seconds between the starts of two runs. Defaults to 86400."""
    min_added_bytes: int = Field(default=1, ge=1, le=2**53 - 1)
    """minAddedBytes is the number of bytes that must have been added since the last complete run. Data that was removed
    or replaced, and another revision of the base model, count always. Defaults to 1."""


class PromotionRule(Model):
    """PromotionRule is a requirement on the change of a metric from the champion to a run, measured on the same
    rows."""

    model_config = ConfigDict(json_schema_extra=cel_rules(NO_TEST_METRIC))

    metric: MetricName
    """metric is the name of the metric, such as `evalLoss` or `accuracy`."""
    min_improvement: float = 0
    """minImprovement is the minimum improvement over the champion; 0 means better. Lower values are better for losses,
    higher values for all other metrics. Defaults to 0."""
    use: Literal["lowerBound", "value"] = "lowerBound"
    """use is `lowerBound` if the lower end of the 95 % confidence interval of the improvement must be above
    minImprovement, or `value` if the improvement itself must be at least that, so that 0 means not worse. Defaults to
    lowerBound."""


class Promotion(Model):
    """Promotion configures which run becomes the champion."""

    mode: Literal["auto", "manual"] = "auto"
    """mode is `auto` if a run that meets all rules becomes the champion, or `manual` if the run is only compared, and
    `spec.champion.run` sets the champion. Defaults to auto."""
    rules: list[PromotionRule] = Field(default=[PromotionRule(metric="evalLoss")], min_length=1, max_length=8)
    """rules are requirements that a run must meet. Defaults to a lower `evalLoss`."""
    vetoes: list[Literal["forgetting", "bias", "overfitting"]] = Field(
        default=["forgetting"], max_length=3, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """vetoes are verdicts of the evaluation that prevent a promotion: `forgetting` of general text, `bias` that
    fine-tuning has added, and `overfitting`. Defaults to [forgetting]."""


class ChampionSpec(Model):
    """ChampionSpec sets the champion."""

    run: ObjectName
    """run is the name of a complete FineTuneJob of the namespace, or of an earlier champion in `status.champions`."""


class Alias(Model):
    """Alias is an object in S3 that names the champion, for servers."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            s3_uri_rule("uri"),
            uri_text_rule("uri"),
            (
                "self.uri.endsWith('.json') && !self.uri.contains('/../') && !self.uri.contains('*') "
                "&& !self.uri.contains('?') && bytes(self.uri).size() <= 1024",
                "uri must end with .json, must not contain '..' or wildcards and must not be longer than 1024 bytes",
            ),
        )
    )

    uri: Uri
    """uri is the S3 URI of the object, such as `s3://adapters/bot/champion.json`. The history of the runs is written
    beside it, with the suffix `.html`."""


_COMPARES = "self.promotion.mode == 'manual' || "
_IS_MEASURED_BY_TASK = " || ".join(
    f"(self.template.spec.evaluation.task == '{task}' && each.metric in {[*metrics]})"
    for task, metrics in METRICS_BY_TASK.items()
)
_TASK_METRICS = "; ".join(f"{task} has {', '.join(metrics)}" for task, metrics in METRICS_BY_TASK.items())


class FineTuneScheduleSpec(Model):
    """FineTuneScheduleSpec is the specification of a schedule: when runs are created, from what, and which result
    becomes the champion."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                f"{_COMPARES}(has(self.template.spec.dataset.validation) "
                "&& self.template.spec.training.method == 'sft')",
                "promotion.mode auto needs template.spec.dataset.validation.sources and method sft, to compare runs; "
                "set mode to manual for others",
            ),
            (
                "!has(self.template.spec.dataset.validation) || !has(self.template.spec.dataset.validation.fraction)",
                "template.spec.dataset.validation needs sources: fraction draws other rows as soon as rows are added, "
                "so that runs cannot be compared",
            ),
            (
                "self.template.spec.evaluation.baselines.size() <= 3 "
                "&& self.template.spec.evaluation.baselines.all(each, each.name != 'champion')",
                "template.spec.evaluation.baselines must have at most 3 entries and none with the name champion, which "
                "is added",
            ),
            (
                f"{_COMPARES}!('bias' in self.promotion.vetoes) || has(self.template.spec.evaluation.bias)",
                "the veto bias needs template.spec.evaluation.bias",
            ),
            (
                f"{_COMPARES}self.promotion.rules.all(each, each.metric in ['evalLoss', 'perplexity'] "
                f"|| (has(self.template.spec.evaluation.task) && ({_IS_MEASURED_BY_TASK})) "
                "|| self.template.spec.evaluation.graders.exists(grader, grader.name == each.metric))",
                "promotion.rules has a metric that runs do not measure: all have evalLoss, perplexity and the names of "
                f"template.spec.evaluation.graders, and with template.spec.evaluation.task, {_TASK_METRICS}",
            ),
            (
                "!has(self.alias) || !self.template.spec.dataset.sources.exists(each, "
                "each.uri.endsWith('/') && self.alias.uri.startsWith(each.uri))",
                "alias.uri must not be below template.spec.dataset.sources: each promotion would change the data",
            ),
        )
    )

    schedule: CronLine | None = None
    """schedule is when runs are created, as a cron line such as `0 3 * * 1`, or `@hourly`, `@daily`, `@weekly`,
    `@monthly` or `@yearly`. If unset, runs are not created by time."""
    time_zone: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_+/-]+$", min_length=1, max_length=64)] = "UTC"
    """timeZone is the name of the time zone of `schedule`, such as `Europe/Paris`. Defaults to UTC."""
    starting_deadline_seconds: int | None = Field(default=None, ge=1, le=_MAX_SECONDS)
    """startingDeadlineSeconds is the number of seconds by which a run may start late. Later starts are missed. If
    unset, there is no limit."""
    concurrency_policy: Literal["Allow", "Forbid", "Replace"] = "Forbid"
    """concurrencyPolicy is what happens at the start of a run while another is active: `Forbid` waits for its end,
    `Replace` cancels it, and `Allow` runs both. Defaults to Forbid."""
    suspend: bool = False
    """suspend stops the creation of runs. Active runs continue. Defaults to false."""
    run_at: DateTime | None = None
    """runAt requests one more run at this time (RFC 3339), whether inputs have changed or not. A time in the past means
    now. Set another time for another run."""
    on_data_change: OnDataChange | None = None
    """onDataChange creates runs when the data has changed. If unset, runs are not created by changes."""
    successful_runs_history_limit: int = Field(default=3, ge=0, le=20)
    """successfulRunsHistoryLimit is the number of complete FineTuneJobs to keep. The FineTuneJob of the champion is
    kept, too. Results in S3 are never deleted. Defaults to 3."""
    failed_runs_history_limit: int = Field(default=1, ge=0, le=20)
    """failedRunsHistoryLimit is the number of failed and cancelled FineTuneJobs to keep. Defaults to 1."""
    template: RunTemplate
    """template is the template of the FineTuneJobs. A change applies to the runs that are created afterwards."""
    start_from: Literal["base", "champion"] = "base"
    """startFrom is what a run starts training from: `base` trains a new adapter on all data, `champion` continues from
    the adapter of the champion. Defaults to base."""
    promotion: Promotion = Promotion()
    """promotion configures which run becomes the champion."""
    champion: ChampionSpec | None = None
    """champion sets the champion: to approve a run, to go back to an earlier one, or to begin with a run that the
    schedule has not created. It replaces the alias whatever that contains. While it is set, no run is promoted by the
    rules. If unset, the rules choose, and a champion that was set stays until they choose another one."""
    alias: Alias | None = None
    """alias is an object in S3 that names the champion. If unset, the champion is in the status only."""


class ScheduledRun(Model):
    """ScheduledRun is a run of a schedule."""

    name: RunName
    """name is the name of the FineTuneJob."""
    trigger: Trigger
    """trigger is what the run was created for: `Schedule`, `DataChange` or `Request`."""
    scheduled_time: Timestamp
    """scheduledTime is the time for which the run was created (RFC 3339)."""
    template_hash: ReasonText
    """templateHash identifies the template that the run was created from."""
    champion: RunName | None = None
    """champion is the run that this one is compared with."""
    champion_digest: ResultDigest | None = None
    """championDigest is the digest of the result of that run."""
    created: bool = False
    """created tells whether the FineTuneJob was created. Before that, the operator creates it."""
    phase: ReasonText | None = None
    """phase is the phase of the FineTuneJob when it ended. It is unset until then."""
    reason: ReasonText | None = None
    """reason is the reason for the end of the FineTuneJob."""
    completion_time: Timestamp | None = None
    """completionTime is the time when the FineTuneJob ended (RFC 3339)."""
    adapter_uri: ResultUri | None = Field(default=None, alias="adapterURI")
    """adapterURI is the S3 prefix of the adapter."""
    digest: ResultDigest | None = None
    """digest is the digest of the result."""
    model_uri: Annotated[str, StringConstraints(max_length=1024)] | None = Field(default=None, alias="modelURI")
    """modelURI is the location of the base model. It is unset until the decision about the run."""
    model_revision: Annotated[str, StringConstraints(max_length=255)] | None = None
    """modelRevision is the hub commit of the base model, or a digest of its files."""
    decision: ReasonText | None = None
    """decision is `Promoted`, or the reason why the run did not become the champion. It is unset until it is made."""
    message: Annotated[str, StringConstraints(max_length=512)] = ""
    """message is the decision as a sentence. Until it is made, it is the error of a run that failed."""
    metrics: dict[ReasonText, float] = Field(default={}, max_length=8)
    """metrics are the metrics of `promotion.rules` of the run."""
    changes: list[MetricChange] = Field(default=[], max_length=8)
    """changes are the changes of these metrics from the champion of that time to the run."""


class Champion(Model):
    """Champion is a result that the alias names, or has named."""

    run: RunName
    """run is the name of the FineTuneJob."""
    adapter_uri: ResultUri = Field(alias="adapterURI")
    """adapterURI is the S3 prefix of the adapter."""
    digest: ResultDigest
    """digest is the digest of the result."""
    model_uri: Annotated[str, StringConstraints(max_length=1024)] = Field(alias="modelURI")
    """modelURI is the location of the base model."""
    model_revision: Annotated[str, StringConstraints(max_length=255)]
    """modelRevision is the hub commit of the base model, or a digest of its files."""
    promoted_time: Timestamp
    """promotedTime is the time of the promotion (RFC 3339)."""
    reason: ReasonText
    """reason is `Promoted` by the rules, or `Pinned` by `spec.champion.run`."""
    completion_time: Timestamp | None = None
    """completionTime is the time when the run completed (RFC 3339)."""
    metrics: dict[ReasonText, float] = Field(default={}, max_length=32)
    """metrics are the metrics of the run."""


class PendingPromotion(Model):
    """PendingPromotion is a promotion that is not finished: a task writes the alias."""

    champion: Champion
    """champion is the result that becomes the champion when the alias names it."""
    alias_uri: ResultUri | None = Field(default=None, alias="aliasURI")
    """aliasURI is the S3 URI of the alias."""
    attempt_time: Timestamp
    """attemptTime is the time when the last attempt to write the alias began (RFC 3339)."""
    generation: Count
    """generation is the generation of the spec that this attempt is based on."""
    failure: ReasonText | None = None
    """failure is the reason why the last attempt failed. It is unset while the attempt is under way."""
    message: Annotated[str, StringConstraints(max_length=512)] = ""
    """message says why it failed."""


class InputsCheck(Model):
    """InputsCheck is the last check of the inputs."""

    time: Timestamp
    """time is the time of the check (RFC 3339)."""
    run: RunName | None = None
    """run is the complete run whose inputs were compared."""
    digest: ResultDigest | None = None
    """digest identifies the inputs. It is unset if the check failed."""
    unchanged: bool = False
    """unchanged tells whether the inputs are those of the run."""
    added_bytes: Count = 0
    """addedBytes is the number of bytes that were added since."""
    removed_files: Count = 0
    """removedFiles is the number of files that were removed, or replaced without growing."""
    model_changed: bool = False
    """modelChanged tells whether the base model is another one."""
    message: Annotated[str, StringConstraints(max_length=512)] = ""
    """message is the result, or why the check failed."""


class FineTuneScheduleStatus(Model):
    """FineTuneScheduleStatus is the observed state of a FineTuneSchedule."""

    observed_generation: int | None = Field(default=None, ge=0)
    """observedGeneration is the generation of the spec that this status is based on."""
    conditions: list[Condition] = Field(default=[], max_length=16, json_schema_extra={
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    })  # fmt: skip
    """conditions are the latest observations. `Promoted` tells whether the last complete run is the champion, and
    `UpToDate` whether it has the inputs and the template of now."""
    last_schedule_time: Timestamp | None = None
    """lastScheduleTime is the last time of `spec.schedule` that a run was created or skipped for (RFC 3339)."""
    next_schedule_time: Timestamp | None = None
    """nextScheduleTime is the next time of `spec.schedule` (RFC 3339)."""
    last_run_at: Timestamp | None = None
    """lastRunAt is the last value of `spec.runAt` that a run was created for."""
    last_successful_time: Timestamp | None = None
    """lastSuccessfulTime is the time when a run last completed (RFC 3339)."""
    active: list[RunName] = Field(default=[], max_length=100)
    """active are the names of the runs that have not ended."""
    runs: list[ScheduledRun] = Field(default=[], max_length=20)
    """runs are the last runs, the newest first."""
    inputs: InputsCheck | None = None
    """inputs is the last check of the inputs."""
    champion: Champion | None = None
    """champion is the result that the alias names."""
    champions: list[Champion] = Field(default=[], max_length=10)
    """champions are the last champions, the current one first."""
    promoting: PendingPromotion | None = None
    """promoting is the promotion that is under way, or that is tried again."""
    alias_uri: ResultUri | None = Field(default=None, alias="aliasURI")
    """aliasURI is the S3 URI of the alias that names the champion."""
    alias_conflict: Annotated[str, StringConstraints(max_length=512)] | None = None
    """aliasConflict says what the alias contains instead of the champion."""
    runs_since_promotion: Count = 0
    """runsSincePromotion is the number of complete runs since the last promotion."""
    report_uri: ResultUri | None = Field(default=None, alias="reportURI")
    """reportURI is the S3 URI of the page with the history of the runs."""
    report_digest: ReasonText | None = None
    """reportDigest identifies the runs and decisions that the page was last written for."""


class FineTuneSchedule(Model):
    """FineTuneSchedule keeps a fine-tuned model current: it creates FineTuneJobs at times, when data changes, or on
    request, compares each result with the champion, and names the best one."""

    model_config = ConfigDict(extra="ignore")

    metadata: ObjectMeta
    """metadata is the standard metadata of the object."""
    spec: FineTuneScheduleSpec
    """spec is the desired schedule."""
    status: FineTuneScheduleStatus | None = None
    """status is the observed state of the schedule."""
