"""Readers that decide whose checkpoints are cleaned."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_operator.api.objects import Body
from finetune_operator.observed.objects import find_true_condition, is_finished, is_managed_elsewhere

CLEANED_TIME_FIELD = "checkpointsCleanedTime"


def may_have_checkpoints(body: Body) -> bool:
    """Return whether a stored FineTuneJob may have left checkpoints.

    A complete run has deleted its own, and a run whose trainer never started has none.
    """
    status = body.get("status") or {}
    was_started = bool(status.get("startTime")) and CLEANED_TIME_FIELD not in status
    return not is_managed_elsewhere(body) and was_started and find_true_condition(body, "Complete") is None


def get_expanded_output_uri(body: Body) -> str:
    """Return the output of a stored FineTuneJob with its placeholders replaced, without a slash at its end."""
    output, meta = body.get("spec", {}).get("output"), body["metadata"]
    uri = str(output.get("uri", "")) if isinstance(output, dict) else ""
    return uri.replace("{name}", meta["name"]).replace("{namespace}", meta["namespace"]).rstrip("/")


def find_live_run(bodies: Iterable[Body], output_uri: str) -> Body | None:
    """Return an unfinished FineTuneJob with this output, which may resume from the checkpoints there."""
    return next(
        (body for body in bodies if not is_finished(body) and get_expanded_output_uri(body) == output_uri), None
    )
