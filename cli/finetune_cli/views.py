"""Formats values of statuses for tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_operator.api.status import Condition


def format_number(value: float | None) -> str:
    """Return a metric with four digits, or an empty text."""
    return "" if value is None else f"{value:.4g}"


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return metrics as text, such as `accuracy 0.93, evalLoss 0.41`."""
    return ", ".join(f"{name} {format_number(value)}" for name, value in metrics.items())


def format_seconds(seconds: int | None) -> str:
    """Return a duration such as `1h23m`, `4m` or `30s`, or an empty text."""
    if seconds is None:
        return ""
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m" if minutes else f"{seconds}s"


def find_condition(conditions: Sequence[Condition], condition_type: str) -> Condition | None:
    """Return the condition of a type."""
    return next((condition for condition in conditions if condition.type == condition_type), None)


def format_condition(conditions: Sequence[Condition], condition_type: str) -> str:
    """Return status, reason and message of a condition, or an empty text."""
    condition = find_condition(conditions, condition_type)
    return f"{condition.status} ({condition.reason}) {condition.message}".strip() if condition else ""


def drop_empty(values: Mapping[str, str | None]) -> dict[str, str]:
    """Return the fields that have a value."""
    return {name: value for name, value in values.items() if value}


def remove_managed_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object without the bookkeeping of the API server, as kubectl prints it."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return {**body, "metadata": metadata}
