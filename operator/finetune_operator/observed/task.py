"""Readers of the pods of tasks."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from finetune_operator.api.objects import Body
from finetune_operator.observed.pod import find_newest_pod
from finetune_trainer.contract import OUTCOME_MAX_BYTES, TaskOutcome


def read_task_outcome(pods: Iterable[Body]) -> TaskOutcome | None:
    """Return the outcome of the newest pod that has one. The message is validated, since any process can write it."""
    newest_pod = find_newest_pod(pod for pod in pods if _find_message(pod))
    text = _find_message(newest_pod) if newest_pod else ""
    try:
        return TaskOutcome.model_validate_json(text) if len(text.encode()) <= OUTCOME_MAX_BYTES else None
    except ValidationError:
        return None


def _find_message(pod: Body) -> str:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    messages = (status.get("state", {}).get("terminated", {}).get("message") for status in statuses)
    return next((message for message in messages if message), "")
