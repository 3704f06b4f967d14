"""Tests of a run whose base model is in the model cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.model_cache import mount
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import MODEL_CACHE_DIR_ENV, CacheResult, Reason
from finetune_trainer.inputs import base_model
from finetune_trainer.inputs.model_cache import cached_source, filling
from finetune_trainer.storage import S3

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], TrainerRun]:
    return make_run_factory(s3, tmp_path, forks.build_model)


def read_record(run: TrainerRun) -> dict[str, object]:
    """Return the facts of the manifest that must not depend on where the model was read from."""
    manifest = json.loads(run.s3.get(f"{run.output}/manifest.json"))
    weights = next(file["sha256"] for file in manifest["files"] if file["path"] == "adapter_model.safetensors")
    return {"model": manifest["model"], "inputs": manifest["inputs"], "weights": weights}


def test_run_with_model_cache_equals_run_without(
    pods: Callable[[str], TrainerRun], forks: ForkServer, tmp_path: Path
) -> None:
    plain, missed, hit = pods("plain"), pods("missed"), pods("hit")
    cache_dir = tmp_path / "cache"
    cache_dir.mkdir()
    for run in (missed, hit):
        run.environment[MODEL_CACHE_DIR_ENV] = str(cache_dir)
    assert forks.run(plain, maxSteps=2) is Reason.COMPLETED, plain.log
    assert forks.run(missed, maxSteps=2) is Reason.COMPLETED, missed.log
    config = hit.config()
    source = cached_source.get_cacheable(base_model.resolve_model(config.model, S3(config.storage)))
    assert source
    filling.fill_cache(cache_dir, source, config.model.uri)
    with mount(cache_dir, "--bind", "-o", "ro", str(cache_dir)):
        assert forks.run(hit, maxSteps=2) is Reason.COMPLETED, hit.log
    results = [run.outcome.model_cache for run in (plain, missed, hit)]
    assert results == [None, CacheResult.MISS, CacheResult.HIT]
    assert "the base model is read from" in hit.log
    assert "to download, and no weights" in hit.log
    assert " of weights" in missed.log
    assert " of weights" not in hit.log
    assert read_record(plain) == read_record(missed) == read_record(hit)
