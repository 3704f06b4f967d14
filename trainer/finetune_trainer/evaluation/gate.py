"""Checks the rules of `evaluation.gate`, which decide whether a model is published."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from finetune_trainer.records.evaluation import GateCheck, Measure

_ROUNDING_TOLERANCE = 1e-9
"""Tolerance for floating-point rounding: 0.7 - 0.6 is slightly less than 0.1."""


class MetricRule(Protocol):
    """The limits of a metric. Each limit that is set is a check of its own."""

    @property
    def metric(self) -> str:
        """The name of a `Measure`."""

    @property
    def minimum(self) -> float | None:
        """Lowest allowed value, in the unit of the metric."""

    @property
    def maximum(self) -> float | None:
        """Highest allowed value, in the unit of the metric."""

    @property
    def min_improvement(self) -> float | None:
        """Minimum improvement over the base model, in the unit of the metric. Positive is better for every metric."""


def check_gate(rules: Sequence[MetricRule], measures: Sequence[Measure]) -> list[GateCheck]:
    """Return one check for each limit, in the order of the rules. A metric that was not measured does not pass."""
    measures_by_name = {measure.name: measure for measure in measures}
    return [result for rule in rules for result in _check_rule(rule, measures_by_name.get(rule.metric))]


def _check_rule(rule: MetricRule, measure: Measure | None) -> Iterator[GateCheck]:
    value = measure.tuned.value if measure else None
    if rule.minimum is not None:
        passed = value is not None and _is_at_least(value, rule.minimum)
        yield _build_check(rule.metric, f"at least {rule.minimum:g}", value, passed)
    if rule.maximum is not None:
        passed = value is not None and _is_at_least(rule.maximum, value)
        yield _build_check(rule.metric, f"at most {rule.maximum:g}", value, passed)
    if rule.min_improvement is not None:
        improvement = _compute_improvement(measure) if measure else None
        yield _build_improvement_check(rule.metric, rule.min_improvement, improvement)


def _build_check(metric: str, limit: str, value: float | None, passed: bool) -> GateCheck:
    message = f"{metric} {_describe_value(value)}, {limit} is required"
    return GateCheck(metric=metric, rule=f"{metric} {limit}", value=value, passed=passed, message=message)


def _build_improvement_check(metric: str, minimum: float, improvement: float | None) -> GateCheck:
    return GateCheck(
        metric=metric,
        rule=f"{metric} {_describe_improvement(minimum)}",
        value=improvement,
        passed=improvement is not None and _is_at_least(improvement, minimum),
        message=f"the improvement of {metric} over the base model {_describe_value(improvement)}, at least "
        f"{minimum:g} is required",
    )


def _describe_value(value: float | None) -> str:
    return "was not measured" if value is None else f"is {value:.4g}"


def _is_at_least(value: float, limit: float) -> bool:
    return value >= limit or math.isclose(value, limit, rel_tol=_ROUNDING_TOLERANCE, abs_tol=_ROUNDING_TOLERANCE)


def _compute_improvement(measure: Measure) -> float | None:
    """Return the improvement over the base model. It is negative if the tuned model is worse."""
    if measure.change is not None:
        change = measure.change.value
    elif measure.base is not None:
        change = measure.tuned.value - measure.base.value
    else:
        return None
    return change if measure.higher_is_better else -change


def _describe_improvement(improvement: float) -> str:
    if improvement > 0:
        return f"better than the base model's by at least {improvement:g}"
    return "not worse than the base model's" + (f" by more than {-improvement:g}" if improvement else "")
