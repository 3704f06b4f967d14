"""The decision whether a complete run of a FineTuneSchedule becomes the champion.

It is a pure function of the spec, the outcome of the run and the champion.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from finetune_operator.api.schedule import (
    CHAMPION_BASELINE,
    Champion,
    FineTuneScheduleSpec,
    PromotionRule,
    ScheduledRun,
    ScheduleReason,
)
from finetune_operator.api.status import Phase
from finetune_operator.observed.complete_run import CompleteRun
from finetune_operator.status.schedules.runs import describe_failure
from finetune_trainer.contract import BaselineComparison, MetricChange, Reason, Result, Verdicts

SET_MESSAGE = "spec.champion.run has set this run."
"""Message of the decision about a run that a person has made the champion."""


_ADAPTER_REASONS = (Reason.MODEL_NOT_FOUND, Reason.MODEL_INVALID, Reason.STORAGE_CORRUPT)
"""Reasons of runs that do not find an adapter as it was published."""


class Decision(NamedTuple):
    """What is decided about a run."""

    reason: ScheduleReason
    """`Promoted`, or why the run does not become the champion."""
    message: str
    """The reason as a sentence, with the numbers that it is based on."""
    metrics: dict[str, float]
    """The metrics of `promotion.rules` that the run has."""
    changes: tuple[MetricChange, ...]
    """The changes of these metrics from the champion to the run."""


def decide(spec: FineTuneScheduleSpec, run: ScheduledRun, complete: CompleteRun, champion: Champion | None) -> Decision:
    """Return whether a run becomes the champion. `complete` is its outcome, `champion` the champion of now.

    With `promotion.mode` manual or a pinned champion it does not, and the message says what the rules say.
    """
    changes = _list_changes(spec, complete.result)
    metrics = _collect_metrics(spec, complete.result, changes)
    if champion and (champion.run, champion.digest) == (run.name, complete.result.digest):
        return Decision(ScheduleReason.PROMOTED, SET_MESSAGE, metrics, changes)
    reason, message = _apply_rules(spec, run, complete, champion)
    if spec.promotion.mode == "manual":
        message = f"By the rules: {reason}: {message} Set spec.champion.run to {run.name} to approve the run."
        reason = ScheduleReason.AWAITING_APPROVAL
    elif spec.champion:
        message = f"spec.champion.run is {spec.champion.run}. By the rules: {reason}: {message}"
        reason = ScheduleReason.PINNED
    return Decision(reason, message, metrics, changes)


def explain_missing_result(run: ScheduledRun, champion: Champion | None) -> Decision:
    """Return the decision about a run without a result that can be read."""
    if run.phase == Phase.COMPLETE:
        message = (
            "The FineTuneJob was deleted or replaced before its result was compared, or its result is not readable."
        )
        return Decision(ScheduleReason.NOT_MEASURED, message, {}, ())
    message = describe_failure(run)
    if champion is None or not _is_about_champion(run, champion):
        return Decision(ScheduleReason.RUN_FAILED, message, {}, ())
    advice = (
        f"The run could not use the champion {champion.run} from S3. Restore {champion.adapter_uri}, or set "
        "spec.champion.run to a run whose result exists."
    )
    return Decision(ScheduleReason.CHAMPION_UNUSABLE, f"{advice} {message}", {}, ())


def _is_about_champion(run: ScheduledRun, champion: Champion) -> bool:
    """Return whether a run has failed because of the champion's adapter. Its error names the URI."""
    is_compared = (run.champion, run.champion_digest) == (champion.run, champion.digest)
    names_adapter = re.search(re.escape(champion.adapter_uri.rstrip("/")) + r"(?![\w-])", run.message)
    return is_compared and run.reason in _ADAPTER_REASONS and names_adapter is not None


def is_better(change: MetricChange, rule: PromotionRule) -> bool | None:
    """Return whether a change meets a rule, or None if there are too few rows for the interval that the rule needs.

    The improvement is the change in the direction of better values. By `lowerBound` the lower end of its interval must
    be above `minImprovement`; by `value` it must be at least `minImprovement` itself.
    """
    sign = 1 if change.higher_is_better else -1
    if rule.use == "value":
        return sign * change.change >= rule.min_improvement
    end = change.low if change.higher_is_better else change.high
    return None if end is None else sign * end > rule.min_improvement


def _apply_rules(
    spec: FineTuneScheduleSpec, run: ScheduledRun, complete: CompleteRun, champion: Champion | None
) -> tuple[ScheduleReason, str]:
    """Return the decision without regard to `promotion.mode` and `spec.champion`."""
    if veto := _find_veto(spec, complete.result.verdicts or Verdicts()):
        return veto
    if champion is None:
        return _decide_first(spec, complete.result)
    if obstacle := _find_obstacle(run, complete, champion):
        return obstacle
    comparison = _find_comparison(complete.result, champion)
    if comparison is None:
        message = f"The run has not measured the champion {champion.run}, so that they cannot be compared."
        return ScheduleReason.NOT_MEASURED, message
    if not comparison.held_out:
        message = (
            f"The champion {champion.run} may have been trained on the validation rows of the run, which makes it look "
            "better than it is. Set spec.champion.run to the better one of the two."
        )
        return ScheduleReason.HELD_OUT_ROWS_CHANGED, message
    return _compare(spec, comparison)


def _find_veto(spec: FineTuneScheduleSpec, verdicts: Verdicts) -> tuple[ScheduleReason, str] | None:
    texts = verdicts.to_json()
    values = [(veto, texts[veto]) for veto in sorted(spec.promotion.vetoes)]
    if found := [veto for veto, value in values if value == veto]:
        message = f"The evaluation has found {', '.join(found)}; see the report of the run."
        return ScheduleReason.VETOED, message
    if unknown := [veto for veto, value in values if value != "none"]:
        message = f"The evaluation could not tell {', '.join(unknown)} (promotion.vetoes); see the report of the run."
        return ScheduleReason.NOT_MEASURED, message
    return None


def _decide_first(spec: FineTuneScheduleSpec, result: Result) -> tuple[ScheduleReason, str]:
    missing = [rule.metric for rule in spec.promotion.rules if rule.metric not in result.metrics]
    if missing:
        return ScheduleReason.NOT_MEASURED, f"The run has not measured {', '.join(missing)} (promotion.rules)."
    return ScheduleReason.PROMOTED, "It is the first run, so that there was no champion to compare it with."


def _find_obstacle(run: ScheduledRun, complete: CompleteRun, champion: Champion) -> tuple[ScheduleReason, str] | None:
    """Return why the run cannot be compared with the champion of now."""
    old = (champion.model_uri, champion.model_revision)
    new = (complete.model_uri, complete.result.model_revision)
    if old != new:
        message = (
            f"The base model is {' at '.join(new)}, that of the champion {champion.run} is {' at '.join(old)}. Set "
            f"spec.champion.run to {run.name} to change to it."
        )
        return ScheduleReason.NOT_COMPARABLE, message
    if (run.champion, run.champion_digest) != (champion.run, champion.digest):
        message = f"The run was compared with {run.champion or 'no champion'}; the champion is {champion.run} now."
        return ScheduleReason.CHAMPION_CHANGED, message
    return None


def _find_comparison(result: Result, champion: Champion) -> BaselineComparison | None:
    identity = (CHAMPION_BASELINE, champion.digest)
    return next((each for each in result.baselines or () if (each.name, each.digest) == identity), None)


def _compare(spec: FineTuneScheduleSpec, comparison: BaselineComparison) -> tuple[ScheduleReason, str]:
    """Return the decision by the rules: one that is not met is enough to know that the run is not better."""
    changes = {change.metric: change for change in comparison.changes}
    judged = [_judge(rule, changes.get(rule.metric)) for rule in spec.promotion.rules]
    reasons = {reason for reason, _ in judged}
    order = (ScheduleReason.NOT_BETTER, ScheduleReason.NOT_MEASURED)
    reason = next((reason for reason in order if reason in reasons), ScheduleReason.PROMOTED)
    return reason, "; ".join(text for _, text in judged) + "."


def _judge(rule: PromotionRule, change: MetricChange | None) -> tuple[ScheduleReason, str]:
    """Return whether a rule is met, and its numbers."""
    if change is None:
        return ScheduleReason.NOT_MEASURED, f"{rule.metric} was not compared"
    text = _describe_change(change)
    better = is_better(change, rule)
    if better is None:
        return ScheduleReason.NOT_MEASURED, f"{text}: {change.samples} rows are too few for an interval"
    if better:
        return ScheduleReason.PROMOTED, text
    return ScheduleReason.NOT_BETTER, f"{text}: {_describe_rule(rule, change)}"


def _describe_change(change: MetricChange) -> str:
    values = f"{change.metric} {change.baseline:.4g} → {change.value:.4g}, change {change.change:+.4g}"
    return values if change.low is None or change.high is None else f"{values} [{change.low:+.4g}, {change.high:+.4g}]"


def _describe_rule(rule: PromotionRule, change: MetricChange) -> str:
    """Return what a rule requires, in terms of the change rather than of the improvement."""
    limit = rule.min_improvement if change.higher_is_better else 0 - rule.min_improvement
    if rule.use == "value":
        return f"the change must be at {'least' if change.higher_is_better else 'most'} {limit:g}"
    end, side = ("lower", "above") if change.higher_is_better else ("upper", "below")
    return f"the {end} end must be {side} {limit:g}"


def _list_changes(spec: FineTuneScheduleSpec, result: Result) -> tuple[MetricChange, ...]:
    """Return what the run has measured of `promotion.rules` against the champion that it was compared with."""
    metrics = {rule.metric for rule in spec.promotion.rules}
    comparisons = (each for each in result.baselines or () if each.name == CHAMPION_BASELINE)
    comparison = next(comparisons, BaselineComparison(name=CHAMPION_BASELINE))
    return tuple(change for change in comparison.changes if change.metric in metrics)


def _collect_metrics(spec: FineTuneScheduleSpec, result: Result, changes: tuple[MetricChange, ...]) -> dict[str, float]:
    measured = {change.metric: change.value for change in changes} | result.metrics
    return {rule.metric: measured[rule.metric] for rule in spec.promotion.rules if rule.metric in measured}
