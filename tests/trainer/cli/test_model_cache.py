"""Tests of `finetune-trainer cache` as processes: concurrent pods, pods that are killed, and what users see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.faulty_proxy import Fault, FaultyProxy
from tests.support.trainer.model_cache import FILL, MODEL, CachedModel, cached_model, read_folder
from tests.support.trainer.untrained_runs import build_config, prefix, publish

from finetune_trainer.cli import model_cache
from finetune_trainer.cli.app import build_parser
from finetune_trainer.contract import CONFIG_ENV, SCRATCH_ENV, CacheResult
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.model_cache import locking
from finetune_trainer.inputs.model_cache.records import FillReport

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

__all__ = ["cached_model", "prefix"]
pytestmark = pytest.mark.s3

StartPod = Callable[..., subprocess.Popen[str]]
FORK_PODS = """
import os, sys
from pathlib import Path
from finetune_trainer.__main__ import main
import finetune_trainer.cli.model_cache  # imported once, and forked before there are threads
for number in range(int(sys.argv.pop())):
    if os.fork() == 0:
        folder = Path(os.environ["FINETUNE_SCRATCH"]) / str(number)
        folder.mkdir()
        os.environ["FINETUNE_SCRATCH"] = str(folder)
        main()
while True:
    try:
        assert os.wait()[1] == 0
    except ChildProcessError:
        break
"""
"""Runs many init containers at a time, each in a process with a folder of its own."""


@pytest.fixture
def start_pod(cached_model: CachedModel, s3: S3Server, tmp_path: Path) -> StartPod:
    """Return a function that starts the init container of a pod."""

    def start(number: int = 0, command: list[str] = FILL, **model: str) -> subprocess.Popen[str]:
        scratch = tmp_path / "scratch" / str(number)
        scratch.mkdir(exist_ok=True)
        config = {
            "model": {"uri": cached_model.uri} | model,
            "dataset": {"sources": [{"uri": "s3://data/rows.jsonl"}]},
            "training": {"maxSteps": 1},
            "output": {"uri": f"s3://results/{tmp_path.name}"},
            "storage": {"endpoint": s3.endpoint},
        }
        environment = os.environ | {CONFIG_ENV: json.dumps(config), SCRATCH_ENV: str(scratch)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end of an init container that must not end its pod. Returns the log."""
    with process:
        log, _ = process.communicate()
    assert process.returncode == 0, log
    assert "Traceback" not in log
    assert "canary" not in log
    return log


def read_result(tmp_path: Path, number: int) -> FillReport:
    return FillReport.model_validate_json((tmp_path / "scratch" / str(number) / "model-cache.json").read_bytes())


def test_cache_fill_eight_pods_download_each_file_once(
    cached_model: CachedModel, start_pod: StartPod, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.faults = [Fault("delay", key="model-1.safetensors")]
    finish(start_pod(command=[sys.executable, "-c", FORK_PODS, "cache", "fill", "8"]))
    reports = (tmp_path / "scratch" / "0").glob("*/model-cache.json")
    results = sorted(FillReport.model_validate_json(path.read_bytes()).result for path in reports)
    assert results == [CacheResult.FILLED, *[CacheResult.HIT] * 7]
    downloads = [path.rpartition("/")[2] for path in proxy.read_paths if ".safetensors" in path]
    assert sorted(downloads) == ["model-1.safetensors", "model-2.safetensors"]
    assert read_folder(cached_model.entry.model_dir) == MODEL


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_cache_fill_stopped_pod_leaves_no_entry(
    cached_model: CachedModel,
    start_pod: StartPod,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    sent: signal.Signals,
    status: int,
) -> None:
    proxy.stalled_key = "model-2.safetensors"
    with start_pod() as process:
        proxy.stall_started.wait()
        process.send_signal(sent)
        log, _ = process.communicate(timeout=5)
    assert process.returncode == status
    assert ("Preempted: stopped by SIGTERM" in log.splitlines()) == (sent is signal.SIGTERM)
    assert cached_model.entry.digest not in cached_model.list_cache()
    assert locking.get_lock_path(cached_model.entry).is_dir() == (sent is signal.SIGKILL)
    proxy.stalled_key = "\0"
    monkeypatch.setattr(locking, "STALE_SECONDS", 0.3)
    assert cached_model.fill().result is CacheResult.FILLED
    assert cached_model.list_cache() == [cached_model.entry.digest]
    assert read_folder(cached_model.entry.model_dir) == MODEL


def test_cache_fill_failure_is_a_miss_and_never_ends_the_pod(
    cached_model: CachedModel, start_pod: StartPod, tmp_path: Path
) -> None:
    missing = start_pod(1, uri="s3://models/no-such-model")
    assert "the model cache is not used: s3://models/no-such-model/" in finish(missing)
    assert read_result(tmp_path, 1).result is CacheResult.MISS
    cached_model.cache_dir.rmdir()
    cached_model.cache_dir.write_text("a file")
    assert f"{cached_model.cache_dir}" in finish(start_pod(3))
    assert read_result(tmp_path, 3).result is CacheResult.MISS


def test_cache_fill_published_result_downloads_nothing(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached_model: CachedModel
) -> None:
    config = build_config(s3, prefix)
    publish(config, tmp_path)
    monkeypatch.setenv(CONFIG_ENV, json.dumps(config.to_json()))
    assert model_cache.fill_for_pod().message == "Miss: the result is published already"
    assert list(cached_model.cache_dir.iterdir()) == []


def test_cache_list_prints_table_and_rejects_other_paths(cached_model: CachedModel) -> None:
    cached_model.fill()
    command = [sys.executable, "-m", "finetune_trainer", "cache", "list", str(cached_model.cache_dir)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert cached_model.uri in listed.stdout
    assert listed.stderr == ""
    missing = build_parser().parse_args(["cache", "list", str(cached_model.cache_dir / "missing")])
    with pytest.raises(TrainerError, match="missing is not a folder"):
        model_cache.list_cache(missing)
