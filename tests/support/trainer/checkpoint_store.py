"""Checkpoints of a run in S3, and the files that transformers writes for them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.tiny_model import import_libraries

from finetune_trainer.checkpoints.store import CheckpointProvenance, CheckpointStore
from finetune_trainer.storage import S3, Location

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

ORIGIN = CheckpointProvenance("sha256:config", "sha256:data", "revision", {"torch": "1"})
CHECKPOINT_FILES = ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    import_libraries()
    return f"s3://results/{tmp_path.name}/"


@pytest.fixture
def store(s3: S3Server, prefix: str) -> CheckpointStore:
    return open_store(s3, prefix)


def open_store(s3: S3Server, prefix: str, origin: CheckpointProvenance = ORIGIN, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(S3(s3.storage), Location.parse(prefix), origin, keep)


def write_trainer_state(folder: Path, step: int) -> Path:
    """Write the files of a checkpoint like transformers, including files that are not uploaded. Return the folder."""
    import torch

    folder = folder / f"saved-{step}"
    folder.mkdir()
    for name in CHECKPOINT_FILES:
        if name.endswith((".pt", ".pth")):
            torch.save({"step": step}, folder / name)
        else:
            (folder / name).write_text(json.dumps({"step": step, "name": name}) * 50)
    (folder / "training_args.bin").write_bytes(pickle.dumps("arguments"))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def save_checkpoints(store: CheckpointStore, folder: Path, *steps: int) -> None:
    for step in steps:
        store.save(write_trainer_state(folder, step), step, lambda: None)


def list_steps(s3: S3Server, prefix: str) -> list[str]:
    return sorted({key.split("/")[-2] for key in s3.list_keys(prefix)})
