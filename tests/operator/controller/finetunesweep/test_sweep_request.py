"""Parsing of stored FineTuneSweeps, also of other versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.operator.builders import merge_objects
from tests.support.operator.sweeps import build_sweep

from finetune_operator.api.objects import ObjectKey
from finetune_operator.api.sweep import SWEEP_KIND
from finetune_operator.controller.finetunejob.request import UnreadableObjectError
from finetune_operator.controller.finetunesweep.request import SweepRequest, build_sweep_request
from finetune_operator.status.sweeps.sweep_state import SweepProblem

Body = dict[str, Any]


def _build_request(changes: Body) -> SweepRequest:
    body = merge_objects(build_sweep(), {"metadata": {"uid": "uid-lr", "generation": 2}, **changes})
    return build_sweep_request(ObjectKey(SWEEP_KIND, "team", "lr"), body, datetime(2026, 11, 23, 8, tzinfo=UTC))


def test_build_sweep_request_valid_has_all_trials() -> None:
    request = _build_request({})
    assert (len(request.trials), request.now, request.meta.generation) == (3, "2026-11-23T08:00:00Z", 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": {"newerField": 1}},
        {"spec": {"search": {"type": "bayes"}}},
        {"status": {"phase": "Sleeping"}},
    ],
    ids=["field", "value", "status"],
)
def test_build_sweep_request_of_a_newer_version_is_left_alone(changes: Body) -> None:
    with pytest.raises(UnreadableObjectError):
        _build_request(changes)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"maxParallel": 0}, "spec.maxParallel: Input should be greater than or equal to 1"),
        ({"parameters": {"loraRank": {"min": 2, "max": 8}}}, "spec.parameters: lora_rank: a grid needs values"),
    ],
    ids=["limit", "range in a grid"],
)
def test_build_sweep_request_invalid_spec_is_a_permanent_problem(spec: Body, message: str) -> None:
    problem = _build_request({"spec": spec}).sweep
    assert isinstance(problem, SweepProblem)
    assert (problem.reason, problem.message, problem.is_permanent) == ("InvalidSpec", message, True)
