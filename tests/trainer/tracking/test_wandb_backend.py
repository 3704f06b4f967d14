"""Weights & Biases has no test server, so these tests read the records that its client writes in offline mode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.trainer_process import ROOT

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record

pytestmark = pytest.mark.timeout(180)

RUN_SCRIPT = """
import sys
from pathlib import Path
from finetune_trainer.tracking.run_metadata import RunMetadata
from finetune_trainer.tracking.tracker import RunEnd, RunEndStatus, Tracker, TrackerTiming
from finetune_trainer.tracking.wandb_backend import WandbBackend

metadata = RunMetadata("uid-1", "team/bot", {"training.maxSteps": "3"}, {"finetune.name": "bot"})
credentials = {"WANDB_API_KEY": "canary" + "0" * 34}
backend = WandbBackend(None, "company/chatbots", metadata, credentials, Path(sys.argv[1]))
tracker = Tracker(backend, TrackerTiming(close_seconds=60))
tracker.start()
for step in range(1, 4):
    tracker.log(step, {"loss": 1 / step})
tracker.log(3, {"evalLoss": 2.0})
print(tracker.close(RunEnd(RunEndStatus.FINISHED, {"accuracy": 0.5}, {"finetune.resultDigest": "sha256:1"})))
"""
_FILE_HEADER, _RECORD_HEADER, _BLOCK = 7, 7, 32768


def read_records(content: bytes) -> Iterator[Record]:
    """Yield the records of a log in LevelDB's format. In logs this short, no record is split."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert content.startswith(b":W&B")
    assert len(content) < _BLOCK
    at = _FILE_HEADER
    while at < len(content):
        size = int.from_bytes(content[at + 4 : at + 6], "little")
        yield Record.FromString(content[at + _RECORD_HEADER : at + _RECORD_HEADER + size])
        at += _RECORD_HEADER + size


def read_values(items: Iterable[Any]) -> dict[str, Any]:
    """Return the values of the items by key. Nested keys are joined with dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_offline_records_hold_run(tmp_path: Path) -> None:
    environment = os.environ | {"WANDB_MODE": "offline", "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    line = [sys.executable, "-W", "error", "-c", RUN_SCRIPT, str(tmp_path / "runs")]
    done = subprocess.run(line, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "None\n"
    (path,) = (tmp_path / "runs").glob("wandb/offline-run-*/*.wandb")
    records = list(read_records(path.read_bytes()))

    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.run_id, run.display_name, run.entity, run.project) == ("uid-1", "team/bot", "company", "chatbots")
    assert run.host == "trainer"
    config = read_values(run.config.update) | read_values(item for record in records for item in record.config.update)
    expected = {"training.maxSteps": "3", "finetune.name": "bot", "finetune.resultDigest": "sha256:1"}
    assert {name: config[name] for name in expected} == expected
    history = [read_values(record.history.item) for record in records if record.HasField("history")]
    steps = [(row["_step"], row.get("loss"), row.get("evalLoss")) for row in history]
    assert steps == [(1, 1.0, None), (2, 0.5, None), (3, 1 / 3, 2.0)]
    assert read_values(item for record in records for item in record.summary.update)["accuracy"] == 0.5
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    assert b"canary" not in path.read_bytes() + done.stderr.encode()
