"""The list of the trials of a sweep and their rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.operator.sweeps import DIGEST, build_child_body, parse_sweep

from finetune_operator.resources.trial import build_trial
from finetune_operator.status.sweeps import trials
from finetune_operator.status.sweeps.trials import TrialResult, list_sweep_trials, read_child, read_result
from finetune_trainer.contract import StepResult

Body = dict[str, Any]
GRID = {"parameters": {"learningRate": {"values": [1e-4, 1e-3]}, "loraRank": {"values": [8, 16]}}, "seeds": 2}
RANDOM = {
    "parameters": {"learningRate": {"min": 1e-5, "max": 1e-3, "scale": "log", "values": None}},
    "search": {"type": "random", "trials": 20, "seed": 7},
}


def test_list_sweep_trials_has_all_first_seeds_before_the_second() -> None:
    listed = list_sweep_trials(parse_sweep(GRID).spec)
    assert [(trial.number, trial.configuration, trial.seed) for trial in listed] == [
        (1, 1, 42), (2, 2, 42), (3, 3, 42), (4, 4, 42), (5, 1, 43), (6, 2, 43), (7, 3, 43), (8, 4, 43),
    ]  # fmt: skip
    assert listed[1].values == listed[5].values


@pytest.mark.parametrize("spec", [GRID, RANDOM], ids=["grid", "random"])
def test_list_sweep_trials_is_the_same_after_a_restart(spec: Body) -> None:
    sweep = parse_sweep(spec)
    stored_again = type(sweep).model_validate(json.loads(json.dumps(sweep.to_json())) | {"metadata": sweep.metadata})
    assert list_sweep_trials(sweep.spec) == list_sweep_trials(stored_again.spec)


def test_list_sweep_trials_range_in_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="a grid needs values"):
        list_sweep_trials(parse_sweep({"parameters": RANDOM["parameters"]}).spec)


def test_build_trial_sets_values_seed_step_owner_and_label() -> None:
    sweep = parse_sweep({**GRID, "template": {"metadata": {"labels": {"team": "a"}}}})
    child = build_trial(sweep, list_sweep_trials(sweep.spec)[6], 200)
    training = child["spec"]["training"]
    assert child["metadata"]["name"] == "lr-7"
    assert child["metadata"]["labels"] == {"team": "a", "finetune.dev/sweep": "lr"}
    assert (child["metadata"]["ownerReferences"][0]["kind"], child["spec"]["suspendAtStep"]) == ("FineTuneSweep", 200)
    assert (training["learningRate"], training["lora"]["rank"], training["seed"]) == (1e-3, 8, 43)
    assert "suspendAtStep" not in build_trial(sweep, list_sweep_trials(sweep.spec)[0])["spec"]


def test_read_child_resumed_a_moment_ago_is_active() -> None:
    step = {"step": 100, "evalLoss": 1.0}
    cases: list[tuple[Body, Body, bool]] = [
        ({"suspend": True}, {"reason": "Suspended"}, False),
        ({"suspend": False}, {"reason": "Suspended"}, True),
        ({"suspendAtStep": 100}, {"reason": "StepReached", "stepResult": step}, False),
        ({"suspendAtStep": 200}, {"reason": "StepReached", "stepResult": step}, True),
        ({}, {"reason": "BudgetExhausted"}, False),
    ]
    for spec, status, is_active in cases:
        assert read_child(build_child_body("lr-1", "Suspended", spec, **status)).is_active is is_active, spec
    assert read_child(build_child_body("lr-1")).is_active
    assert not read_child(build_child_body("lr-1", "Failed")).is_active


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"metrics": {"evalLoss": 1.5}}, TrialResult(value=1.5, adapter_uri="s3://b/a", digest=DIGEST)),
        ({"metrics": {"accuracy": 1.0}}, TrialResult(adapter_uri="s3://b/a", digest=DIGEST)),
        ({"digest": "md5:0"}, TrialResult()),
        ({"metrics": {"evalLoss": "NaN"}}, TrialResult()),
        (None, TrialResult()),
    ],
    ids=["measured", "metric missing", "digest invalid", "not a number", "no result"],
)
def test_read_result_takes_valid_results_alone(result: Body | None, expected: TrialResult) -> None:
    base = {"adapterURI": "s3://b/a", "digest": DIGEST, "modelRevision": "r", "newerField": 1}
    body = {"status": {"result": {**base, **result} if result is not None else None}}
    assert read_result(body, "evalLoss") == expected


def test_update_row_ended_never_changes() -> None:
    sweep = parse_sweep()
    row = trials.build_rows("lr", list_sweep_trials(sweep.spec), [])[0]
    done = trials.update_row(row, read_child(build_child_body("lr-1", "Failed", reason="DataInvalid")), None)
    assert (done.phase, done.reason, done.created) == ("Failed", "DataInvalid", True)
    assert trials.update_row(done, read_child(build_child_body("lr-1", "Running")), None) == done


def test_update_row_records_each_step_once() -> None:
    row = trials.build_rows("lr", list_sweep_trials(parse_sweep().spec), [])[0]
    for step, loss in ((100, 2.0), (100, 3.0), (200, 1.0), (100, 9.0)):
        body = build_child_body("lr-1", "Running", stepResult={"step": step, "evalLoss": loss})
        row = trials.update_row(row, read_child(body), None)
    assert row.steps == [StepResult(step=100, eval_loss=2.0), StepResult(step=200, eval_loss=1.0)]
