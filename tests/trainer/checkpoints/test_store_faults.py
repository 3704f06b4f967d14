"""Tests of damaged or malicious checkpoints, and of faults of their store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.checkpoint_store import list_steps, prefix, save_checkpoints, store, write_trainer_state
from tests.support.trainer.faulty_proxy import Fault
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT

from finetune_trainer.checkpoints.store import CheckpointStore

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server

__all__ = ["prefix", "store"]
pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

Change = Callable[["S3Server", str], None]


def flip_bit(name: str) -> Change:
    def change(s3: S3Server, step: str) -> None:
        content = bytearray(s3.get(step + name))
        content[len(content) // 2] ^= 1
        s3.put(step + name, bytes(content))

    return change


def delete_file(name: str) -> Change:
    def change(s3: S3Server, step: str) -> None:
        s3.client.delete_object(Bucket="results", Key=(step + name).removeprefix("s3://results/"))

    return change


def truncate_file(name: str) -> Change:
    return lambda s3, step: s3.put(step + name, s3.get(step + name)[:-1])


def edit_marker(**fields: object) -> Change:
    def change(s3: S3Server, step: str) -> None:
        marker = json.loads(s3.get(step + "checkpoint.json")) | fields
        s3.put(step + "checkpoint.json", json.dumps(marker).encode())

    return change


@pytest.mark.parametrize(
    ("change", "expected_message"),
    [
        pytest.param(delete_file("checkpoint.json"), "it is incomplete", id="died before the marker"),
        pytest.param(delete_file("optimizer.pt"), "optimizer.pt is missing", id="a file is gone"),
        pytest.param(truncate_file("scheduler.pt"), "scheduler.pt has", id="a file is cut"),
        pytest.param(
            flip_bit("adapter_model.safetensors"), "adapter_model.safetensors is damaged", id="a bit is flipped"
        ),
        pytest.param(truncate_file("checkpoint.json"), "checkpoint.json is invalid", id="the marker is cut"),
        pytest.param(edit_marker(formatVersion=2), "it has format version 2", id="a later trainer's"),
        pytest.param(edit_marker(files=[]), "it lists no files", id="the marker is empty"),
        pytest.param(
            edit_marker(files=[{"path": "../../x", "size": 1, "sha256": ""}]),
            "lists ../../x",
            id="a name that leads outside",
        ),
        pytest.param(
            edit_marker(files=[{"path": "training_args.bin", "size": 1, "sha256": ""}]),
            "lists training_args.bin",
            id="a pickle",
        ),
    ],
)
def test_checkpoint_store_damaged_checkpoint_is_skipped(
    s3: S3Server,
    prefix: str,
    store: CheckpointStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Change,
    expected_message: str,
) -> None:
    save_checkpoints(store, tmp_path, 5, 10)
    change(s3, f"{prefix}.checkpoints/config/step-10/")
    restored = store.fetch_newest(tmp_path / "restored")
    assert restored
    assert restored.step == 5
    assert "skipping step 10" in caplog.text
    assert expected_message in caplog.text
    save_checkpoints(store, tmp_path, 7)  # the next checkpoint replaces the damaged one
    assert list_steps(s3, prefix) == ["step-5", "step-7"]


class CodeExecutingPickle:
    """A pickle that runs code where it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_checkpoint_store_pickle_is_never_executed(
    store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    import torch

    save_checkpoints(store, tmp_path, 5)
    folder, trace = write_trainer_state(tmp_path, 10), tmp_path / "trace"
    torch.save(CodeExecutingPickle(trace), folder / name)
    store.save(folder, 10, lambda: None)
    restored = store.fetch_newest(tmp_path / "restored")
    assert restored
    assert restored.step == 5
    assert f"{name} contains more than tensors and numbers" in caplog.text
    assert not trace.exists()


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        pytest.param(Fault("503", "GET", "optimizer.pt"), 10, id="busy once"),
        pytest.param(Fault("500", "GET", "optimizer.pt", 2), 10, id="broken twice"),
        pytest.param(Fault("reset", "GET", "optimizer.pt"), 10, id="connection reset"),
        pytest.param(Fault("delay", "GET", "optimizer.pt"), 10, id="slow"),
        pytest.param(Fault("412", "GET", "optimizer.pt"), 5, id="replaced while it is read"),
        pytest.param(Fault("flip", "GET", "step-10/optimizer.pt"), 5, id="a bit flips on the way"),
    ],
)
def test_checkpoint_store_faults_while_reading_are_survived(
    store: CheckpointStore, tmp_path: Path, proxy: FaultyProxy, fault: Fault, step: int
) -> None:
    save_checkpoints(store, tmp_path, 5, 10)
    proxy.faults = [replace(fault)]
    restored = store.fetch_newest(tmp_path / "restored")
    assert restored
    assert restored.step == step
    assert proxy.faults[0].times == 0


@pytest.mark.parametrize("name", ["optimizer.pt", "checkpoint.json"])
@pytest.mark.parametrize("kind", ["503", "500", "reset", "delay", "late"])
def test_checkpoint_store_faults_while_saving_are_survived(
    store: CheckpointStore, tmp_path: Path, proxy: FaultyProxy, kind: str, name: str
) -> None:
    proxy.faults = [Fault(kind, "PUT", name)]
    save_checkpoints(store, tmp_path, 10)
    assert proxy.faults[0].times == 0
    restored = store.fetch_newest(tmp_path / "restored")
    assert restored
    assert restored.step == 10
