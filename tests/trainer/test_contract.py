"""What operator and trainer rely on in each other's words."""

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


def config(**changes: Any) -> TrainerConfig:
    return TrainerConfig.model_validate(SPEC | changes)


def test_what_is_stored_reads_back_the_same() -> None:
    assert TrainerConfig.model_validate(config().to_json()) == config()
    assert TrainerConfig.model_validate(config().to_json()).digest() == config().digest()


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
        ({"training": {"epochs": 1, "seed": 42}}, True),  # the default, said aloud
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
def test_the_digest_is_of_what_affects_the_result(changes: dict[str, Any], same: bool) -> None:
    assert (config(**changes).digest() == config().digest()) == same


def test_results_of_configs_written_before_there_were_more_fields_are_found() -> None:
    assert config().digest() == "sha256:f73a1b7d11fed55f2b5d56dac1a5e782cfa79ae0987ed1294dc1a0c1573b5877"


@pytest.mark.parametrize(
    ("metadata", "uri"),
    [
        ({"name": "bot", "namespace": "team"}, "s3://results/team/bot/x"),
        ({"name": "bot"}, "s3://results/default/bot/x"),
    ],
)
def test_placeholders(metadata: dict[str, str], uri: str) -> None:
    manifest = {"metadata": metadata, "spec": SPEC | {"output": {"uri": "s3://results/{namespace}/{name}/x"}}}
    assert TrainerConfig.from_manifest(manifest).output.uri == uri


@pytest.mark.parametrize(
    "changes",
    [
        {"unknown": 1},
        {"model": {"uri": "https://host/model"}},
        {"output": {"uri": "s3://bucket"}},
        {"dataset": {"sources": []}},
        {"training": {"epochs": 0}},
        {"storage": {"endpoint": "http://user:secret@host"}},
    ],
)
def test_what_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**changes)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_the_exit_code_of_its_kind(reason: Reason) -> None:
    expected = {
        Reason.COMPLETED: ExitCode.OK,
        Reason.ALREADY_COMPLETE: ExitCode.OK,
        Reason.STORAGE_UNREACHABLE: ExitCode.TRANSIENT,
        Reason.STORAGE_CORRUPT: ExitCode.TRANSIENT,
        Reason.OUTPUT_BUSY: ExitCode.TRANSIENT,
        Reason.TRAINING_STALLED: ExitCode.TRANSIENT,
        Reason.PEERS_MISSING: ExitCode.TRANSIENT,
        Reason.PREEMPTED: ExitCode.PREEMPTED,
        Reason.PEER_LOST: ExitCode.PEER_LOST,
        Reason.INTERNAL_ERROR: ExitCode.INTERNAL,
    }
    assert reason.exit_code is expected.get(reason, ExitCode.PERMANENT)
