"""Reader of the result of a complete FineTuneJob."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ValidationError

from finetune_operator.api.objects import Body
from finetune_operator.observed.objects import find_true_condition, get_name
from finetune_trainer.contract import Result, ResultReference


class CompleteRun(NamedTuple):
    """A FineTuneJob with a published result."""

    name: str
    model_uri: str
    """Location of the base model."""
    result: Result
    completion_time: str | None
    """Time when the run completed (RFC 3339)."""


def read_complete_run(body: Body) -> CompleteRun | None:
    """Return the result of a stored FineTuneJob, or None if it is not complete or if the result cannot be referred to.

    Fields that this version does not know are ignored. The result is validated, since any process in the pod of a run
    can write it.
    """
    status = body.get("status") or {}
    if find_true_condition(body, "Complete") is None:
        return None
    try:
        result = Result.model_validate(status.get("result"), extra="ignore")
        ResultReference(run=get_name(body), adapter_uri=result.adapter_uri, digest=result.digest)
    except ValidationError:
        return None
    return CompleteRun(get_name(body), body["spec"]["model"]["uri"], result, status.get("completionTime"))
