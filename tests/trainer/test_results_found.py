"""What a run makes of what lies at its output already."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.trainer.publishing import attempt, config_for, prefix, publish

from finetune_trainer.cli.generate import GenerateRequest, compare_completions
from finetune_trainer.contract import (
    NODE_RANK_ENV,
    NODES_ENV,
    PROCESSES_ENV,
    RENDEZVOUS_ENV,
    RUN_ID_ENV,
    Outcome,
    Reason,
    TrainerConfig,
)
from finetune_trainer.errors import TrainerError
from finetune_trainer.pipeline import run
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.storage import S3
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import RunContext

if TYPE_CHECKING:
    from tests.trainer.s3_server import S3Server

__all__ = ["prefix"]
pytestmark = pytest.mark.s3


def test_the_same_run_again_is_already_complete(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = config_for(s3, prefix)
    first = publish(config, tmp_path)
    again = attempt(config, tmp_path)
    assert again.reason is Reason.ALREADY_COMPLETE
    assert (again.result, again.dataset, again.backend) == (first.result, first.dataset, first.backend)


LEFT = {
    "by this run": ({"runId": "me", "configDigest": "sha256:old"}, False),
    "by another run of this config": ({"runId": "other", "configDigest": "{digest}"}, False),
    "by a run of another config": ({"runId": "other", "configDigest": "sha256:other"}, True),
    "by who knows whom": ({}, True),
}


@pytest.mark.parametrize(("note", "stays"), LEFT.values(), ids=LEFT)
def test_a_claim_left_beside_a_result(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: dict[str, str], stays: bool
) -> None:
    monkeypatch.setenv(RUN_ID_ENV, "me")
    config = config_for(s3, prefix)
    publish(config, tmp_path)
    s3.put(f"{prefix}/.claim.json", json.dumps(note).replace("{digest}", config.digest()).encode())
    assert attempt(config, tmp_path).reason is Reason.ALREADY_COMPLETE
    assert any(key.endswith(".claim.json") for key in s3.keys(prefix)) is stays


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("s3://data/rows/a.jsonl", b"another"),
        ("s3://data/rows/c.jsonl", b"new"),
        ("s3://models/tiny/model.safetensors", b"other"),
        ("s3://models/tiny/extra.json", b"{}"),
    ],
)
def test_the_same_config_with_other_inputs(s3: S3Server, prefix: str, tmp_path: Path, uri: str, content: bytes) -> None:
    config = config_for(s3, prefix)
    publish(config, tmp_path)
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    s3.put(uri, content)
    try:
        with pytest.raises(TrainerError, match="model or data have changed since") as error:
            attempt(config, tmp_path)
    finally:
        s3.client.delete_object(Bucket=bucket, Key=key)
    assert error.value.reason is Reason.INPUTS_CHANGED


def test_another_config_never_overwrites(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    publish(config_for(s3, prefix), tmp_path)
    before = {key: s3.get(f"s3://results/{key}") for key in s3.keys(prefix)}
    with pytest.raises(TrainerError, match="the result of another config") as error:
        attempt(config_for(s3, prefix, training={"maxSteps": 2}), tmp_path)
    assert error.value.reason is Reason.OUTPUT_EXISTS
    assert {key: s3.get(f"s3://results/{key}") for key in s3.keys(prefix)} == before


@pytest.mark.parametrize("content", [b"", b"{}", b"no json", b'{"kind": "Other"}'])
def test_a_manifest_that_is_not_ours(s3: S3Server, prefix: str, tmp_path: Path, content: bytes) -> None:
    s3.put(f"{prefix}/manifest.json", content)
    with pytest.raises(TrainerError, match="did not write or cannot read") as error:
        attempt(config_for(s3, prefix), tmp_path)
    assert error.value.reason is Reason.OUTPUT_EXISTS


def test_a_newer_trainers_manifest_is_understood(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = config_for(s3, prefix)
    publish(config, tmp_path)
    content = json.loads(s3.get(f"{prefix}/manifest.json")) | {"somethingNew": {"a": 1}}
    s3.put(f"{prefix}/manifest.json", json.dumps(content).encode())
    assert attempt(config, tmp_path).reason is Reason.ALREADY_COMPLETE


def with_merged(config: TrainerConfig) -> TrainerConfig:
    return config.model_copy(update={"output": config.output.model_copy(update={"merged": True})})


def test_a_result_that_lists_its_merged_model_has_one(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = with_merged(config_for(s3, prefix))
    publish(config, tmp_path)
    content = json.loads(s3.get(f"{prefix}/manifest.json"))
    content["files"].append({"path": "merged/config.json", "size": 2, "sha256": "0" * 64})
    s3.put(f"{prefix}/manifest.json", json.dumps(content).encode())
    again = attempt(config, tmp_path)
    assert again.reason is Reason.ALREADY_COMPLETE
    assert again.result
    assert again.result.merged_uri == f"{prefix}/merged"
    assert "merged" not in again.message


@pytest.mark.parametrize("node", ["0", "1"])
def test_one_process_of_a_run_of_several_workers_makes_the_missing_merged_model(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    for name, value in ((NODES_ENV, "2"), (PROCESSES_ENV, "2"), (NODE_RANK_ENV, node), (RENDEZVOUS_ENV, "node:29400")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    config = with_merged(config_for(s3, prefix))
    publish(config, tmp_path)
    content = json.loads(s3.get(f"{prefix}/manifest.json")) | {
        "configDigest": OutputPrefix(S3(config.storage), config).digest
    }
    s3.put(f"{prefix}/manifest.json", json.dumps(content).encode())
    s3.put(f"{prefix}/merged/foreign", b"x")  # so that it ends before it loads a model

    def launch(*_: object) -> Outcome:
        pytest.fail("the result is there, so no workers are launched")

    again = run(config, tmp_path, RunContext(ProgressReporter()), launch)
    assert again.reason is Reason.ALREADY_COMPLETE
    assert again.result
    assert again.result.merged_uri is None
    assert ("the merged model is not published" in again.message) is (node == "0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("4" if node == "0" else "4,5")


def test_an_output_that_cannot_be_written_is_told_before_the_work(s3: S3Server, tmp_path: Path, prefix: str) -> None:
    with pytest.raises(TrainerError, match=r"s3://no-such-bucket/x/.* the bucket does not exist"):
        attempt(config_for(s3, "s3://no-such-bucket/x"), tmp_path)
    config = config_for(s3, prefix)
    with OutputPrefix(S3(config.storage), config).hold_lock(ProgressReporter()):
        assert json.loads(s3.get(f"{prefix}/.claim.json"))["configDigest"] == config.digest()
    assert not [key for key in s3.keys(prefix) if "claim" in key]


def test_a_result_with_a_damaged_file_is_not_used(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = config_for(s3, prefix)
    publish(config, tmp_path)
    s3.put(f"{prefix}/adapter_model.safetensors", b"damaged")
    with pytest.raises(TrainerError, match=r"adapter_model\.safetensors is not what manifest\.json says") as error:
        compare_completions(GenerateRequest("s3://models/tiny", None, prefix, ["hello"], 1, config.storage), tmp_path)
    assert error.value.reason is Reason.STORAGE_CORRUPT
