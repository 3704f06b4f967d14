"""Tests of a run whose output already has files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.untrained_runs import build_config, prefix, publish, run_untrained

from finetune_trainer.cli import launcher
from finetune_trainer.cli.generate import GenerateRequest, compare_completions
from finetune_trainer.cli.run import run_or_launch
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
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.storage import S3
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

__all__ = ["prefix"]
pytestmark = pytest.mark.s3


def test_run_existing_result_is_already_complete(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = build_config(s3, prefix)
    first = publish(config, tmp_path)
    again = run_untrained(config, tmp_path)
    assert again.reason is Reason.ALREADY_COMPLETE
    assert (again.result, again.dataset, again.backend) == (first.result, first.dataset, first.backend)


STALE_LOCKS = {
    "by this run": ({"runId": "me", "configDigest": "sha256:old"}, False),
    "by another run of this config": ({"runId": "other", "configDigest": "{digest}"}, False),
    "by a run of another config": ({"runId": "other", "configDigest": "sha256:other"}, True),
    "of an unknown owner": ({}, True),
}


@pytest.mark.parametrize(("note", "stays"), STALE_LOCKS.values(), ids=STALE_LOCKS)
def test_run_stale_lock_next_to_result_is_removed_if_own(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: dict[str, str], stays: bool
) -> None:
    monkeypatch.setenv(RUN_ID_ENV, "me")
    config = build_config(s3, prefix)
    publish(config, tmp_path)
    s3.put(f"{prefix}/.claim.json", json.dumps(note).replace("{digest}", config.digest()).encode())
    assert run_untrained(config, tmp_path).reason is Reason.ALREADY_COMPLETE
    assert any(key.endswith(".claim.json") for key in s3.list_keys(prefix)) is stays


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("s3://data/rows/a.jsonl", b"another"),
        ("s3://data/rows/c.jsonl", b"new"),
        ("s3://models/tiny/model.safetensors", b"other"),
        ("s3://models/tiny/extra.json", b"{}"),
    ],
)
def test_run_changed_inputs_are_refused(s3: S3Server, prefix: str, tmp_path: Path, uri: str, content: bytes) -> None:
    config = build_config(s3, prefix)
    publish(config, tmp_path)
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    s3.put(uri, content)
    try:
        with pytest.raises(TrainerError, match="model or data have changed since") as error:
            run_untrained(config, tmp_path)
    finally:
        s3.client.delete_object(Bucket=bucket, Key=key)
    assert error.value.reason is Reason.INPUTS_CHANGED


def test_run_other_config_never_overwrites(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    publish(build_config(s3, prefix), tmp_path)
    before = {key: s3.get(f"s3://results/{key}") for key in s3.list_keys(prefix)}
    with pytest.raises(TrainerError, match="the result of another config") as error:
        run_untrained(build_config(s3, prefix, training={"maxSteps": 2}), tmp_path)
    assert error.value.reason is Reason.OUTPUT_EXISTS
    assert {key: s3.get(f"s3://results/{key}") for key in s3.list_keys(prefix)} == before


@pytest.mark.parametrize("content", [b"", b"{}", b"no json", b'{"kind": "Other"}'])
def test_run_unknown_manifest_is_refused(s3: S3Server, prefix: str, tmp_path: Path, content: bytes) -> None:
    s3.put(f"{prefix}/manifest.json", content)
    with pytest.raises(TrainerError, match="did not write or cannot read") as error:
        run_untrained(build_config(s3, prefix), tmp_path)
    assert error.value.reason is Reason.OUTPUT_EXISTS


def test_run_manifest_of_newer_trainer_is_read(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = build_config(s3, prefix)
    publish(config, tmp_path)
    content = json.loads(s3.get(f"{prefix}/manifest.json")) | {"somethingNew": {"a": 1}}
    content |= {"verdicts": {"bias": "none", "newAspect": "none"}, "baselines": [{"name": "may", "newField": 1}]}
    s3.put(f"{prefix}/manifest.json", json.dumps(content).encode())
    again = run_untrained(config, tmp_path)
    assert again.reason is Reason.ALREADY_COMPLETE
    assert again.result
    assert (again.result.verdicts, again.result.baselines) == (None, None)


def enable_merged(config: TrainerConfig) -> TrainerConfig:
    return config.model_copy(update={"output": config.output.model_copy(update={"merged": True})})


def test_run_result_listing_merged_model_is_complete(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = enable_merged(build_config(s3, prefix))
    publish(config, tmp_path)
    content = json.loads(s3.get(f"{prefix}/manifest.json"))
    content["files"].append({"path": "merged/config.json", "size": 2, "sha256": "0" * 64})
    s3.put(f"{prefix}/manifest.json", json.dumps(content).encode())
    again = run_untrained(config, tmp_path)
    assert again.reason is Reason.ALREADY_COMPLETE
    assert again.result
    assert again.result.merged_uri == f"{prefix}/merged"
    assert "the merged model" not in again.message


def test_run_result_is_found_by_other_number_of_ranks_with_global_batch_size_only(
    s3: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_digests(**training: int) -> set[str]:
        config = build_config(s3, prefix, training={"maxSteps": 1, **training})
        digests = set()
        for count in ("1", "2", "4"):
            monkeypatch.setenv(PROCESSES_ENV, count)
            digests.add(OutputPrefix(S3(config.storage), config).digest)
        return digests

    assert len(list_digests()) == 3
    assert len(list_digests(globalBatchSize=8)) == 1


@pytest.mark.parametrize("node", ["0", "1"])
def test_run_missing_merged_model_is_made_by_first_node_only(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    for name, value in ((NODES_ENV, "2"), (PROCESSES_ENV, "2"), (NODE_RANK_ENV, node), (RENDEZVOUS_ENV, "node:29400")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    config = enable_merged(build_config(s3, prefix))
    publish(config, tmp_path)
    content = json.loads(s3.get(f"{prefix}/manifest.json")) | {
        "configDigest": OutputPrefix(S3(config.storage), config).digest
    }
    s3.put(f"{prefix}/manifest.json", json.dumps(content).encode())
    s3.put(f"{prefix}/merged/foreign", b"x")  # so that it ends before it loads a model

    def launch(*_: object) -> Outcome:
        pytest.fail("the result is there, so no workers are launched")

    monkeypatch.setattr(launcher, "launch_ranks", launch)
    again = run_or_launch(config, tmp_path, OutcomeRecorder(ProgressReporter()))
    assert again.reason is Reason.ALREADY_COMPLETE
    assert again.result
    assert again.result.merged_uri is None
    assert ("the merged model is not published" in again.message) is (node == "0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("4" if node == "0" else "4,5")


def test_run_unwritable_output_is_refused_early(s3: S3Server, tmp_path: Path, prefix: str) -> None:
    with pytest.raises(TrainerError, match=r"s3://no-such-bucket/x/.* the bucket does not exist"):
        run_untrained(build_config(s3, "s3://no-such-bucket/x"), tmp_path)
    config = build_config(s3, prefix)
    with OutputPrefix(S3(config.storage), config).hold_lock(ProgressReporter()):
        assert json.loads(s3.get(f"{prefix}/.claim.json"))["configDigest"] == config.digest()
    assert not [key for key in s3.list_keys(prefix) if "claim" in key]


def test_generate_damaged_result_is_refused(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = build_config(s3, prefix)
    publish(config, tmp_path)
    s3.put(f"{prefix}/adapter_model.safetensors", b"damaged")
    with pytest.raises(TrainerError, match=r"adapter_model\.safetensors does not match its digest") as error:
        compare_completions(GenerateRequest("s3://models/tiny", None, prefix, ["hello"], 1, config.storage), tmp_path)
    assert error.value.reason is Reason.STORAGE_CORRUPT
