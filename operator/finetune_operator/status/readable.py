"""Numbers of the status as texts, for the columns of `kubectl get`."""

from __future__ import annotations

from finetune_operator.observed.objects import parse_timestamp
from finetune_trainer.contract import Progress, Stage

_STAGES_AFTER_TRAINING = (Stage.EVALUATING, Stage.EXPORTING, Stage.UPLOADING)


def format_duration(seconds: int) -> str:
    """Return the duration with its two largest units, such as `1h12m`."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m" if minutes else f"{seconds}s"


def format_span(start: str, end: str) -> str:
    """Return the duration between two timestamps (RFC 3339)."""
    return format_duration(max(0, round((parse_timestamp(end) or 0.0) - (parse_timestamp(start) or 0.0))))


def format_remaining(progress: Progress) -> str | None:
    """Return the estimated time until the end of the training, or what the run does after it.

    Nothing estimates how long the stages after the training take.
    """
    if progress.stage in _STAGES_AFTER_TRAINING and not progress.estimated_remaining_seconds:
        return progress.stage.lower()
    seconds = progress.estimated_remaining_seconds
    return None if seconds is None else format_duration(seconds)
