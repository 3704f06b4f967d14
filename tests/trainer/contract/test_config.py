"""Tests of the configuration and the exit codes that operator and trainer share."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_trainer.contract import ExitCode, Reason, TrainerConfig

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://org/name"},
    "dataset": {"sources": [{"uri": "s3://data/a.jsonl"}]},
    "training": {"epochs": 1},
    "output": {"uri": "s3://results/x"},
}


def make_config(**changes: Any) -> TrainerConfig:
    return TrainerConfig.model_validate(SPEC | changes)


def test_config_round_trips_through_json() -> None:
    assert TrainerConfig.model_validate(make_config().to_json()) == make_config()
    assert TrainerConfig.model_validate(make_config().to_json()).digest() == make_config().digest()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"output": {"uri": "s3://results/elsewhere"}}, True),
        ({"output": {"uri": "s3://results/elsewhere", "merged": True}}, False),
        ({"output": {"uri": "s3://results/x", "signing": {"keySecretRef": {"name": "a"}}}}, True),
        ({"tracking": {"tool": "mlflow", "uri": "http://mlflow"}}, True),
        ({"evaluation": {"maxSamples": 200}}, True),
        ({"evaluation": {"maxSamples": 5}}, False),
        ({"storage": {"endpoint": "http://127.0.0.1:1"}}, True),
        ({"training": {"epochs": 1, "seed": 42}}, True),  # the default, set explicitly
        ({"training": {"epochs": 1, "seed": 43}}, False),
        ({"training": {"epochs": 1, "lora": {"rank": 16}}}, True),
        ({"training": {"epochs": 1, "checkpoints": {"everySteps": 5}, "stallSeconds": 60}}, True),
        ({"training": {"epochs": 1, "packing": True}}, False),
        ({"training": {"epochs": 1, "crossValidation": {"folds": 5}}}, False),
        ({"training": {"epochs": 1, "crossValidation": None}}, True),
        ({"training": {"epochs": 2}}, False),
        ({"model": {"uri": "hf://org/name", "revision": "v1"}}, False),
        ({"dataset": {"sources": [{"uri": "s3://data/a.jsonl", "limit": 5}]}}, False),
    ],
)
def test_digest_changes_with_result_affecting_fields(changes: dict[str, Any], same: bool) -> None:
    assert (make_config(**changes).digest() == make_config().digest()) == same


def test_digest_of_early_config_is_unchanged() -> None:
    assert make_config().digest() == "sha256:f73a1b7d11fed55f2b5d56dac1a5e782cfa79ae0987ed1294dc1a0c1573b5877"


@pytest.mark.parametrize(
    ("metadata", "uri"),
    [
        ({"name": "bot", "namespace": "team"}, "s3://results/team/bot/x"),
        ({"name": "bot"}, "s3://results/default/bot/x"),
    ],
)
def test_config_output_placeholders_are_filled(metadata: dict[str, str], uri: str) -> None:
    manifest = {"metadata": metadata, "spec": SPEC | {"output": {"uri": "s3://results/{namespace}/{name}/x"}}}
    assert TrainerConfig.from_manifest(manifest).output.uri == uri


@pytest.mark.parametrize(
    "changes",
    [
        {"unknown": 1},
        {"model": {"uri": "hf://org\nname"}},
        {"output": {"uri": ""}},
        {"dataset": {"sources": []}},
        {"training": {"epochs": 0}},
        {"storage": {"endpoint": "http://user:secret@host"}},
    ],
)
def test_config_invalid_fields_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_config(**changes)


@pytest.mark.parametrize("reason", list(Reason))
def test_reason_has_exit_code_of_its_kind(reason: Reason) -> None:
    expected = {
        Reason.COMPLETED: ExitCode.OK,
        Reason.ALREADY_COMPLETE: ExitCode.OK,
        Reason.STEP_REACHED: ExitCode.OK,
        Reason.STORAGE_UNREACHABLE: ExitCode.TRANSIENT,
        Reason.STORAGE_CORRUPT: ExitCode.TRANSIENT,
        Reason.OUTPUT_BUSY: ExitCode.TRANSIENT,
        Reason.GRADER_FAILED: ExitCode.TRANSIENT,
        Reason.TRAINING_STALLED: ExitCode.TRANSIENT,
        Reason.PEERS_MISSING: ExitCode.TRANSIENT,
        Reason.PREEMPTED: ExitCode.PREEMPTED,
        Reason.PEER_LOST: ExitCode.PEER_LOST,
        Reason.INTERNAL_ERROR: ExitCode.INTERNAL,
    }
    assert reason.exit_code is expected.get(reason, ExitCode.PERMANENT)
