"""Tests of the cache for models of the hub, which gives digests of all files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.trainer.hub_server import COMMIT, LICENSE, NEEDED, HubHandler, hub_endpoint
from tests.support.trainer.model_cache import CachedModel, make_cached_model, read_folder

from finetune_trainer.contract import CacheResult, ModelSource, Storage
from finetune_trainer.inputs import base_model
from finetune_trainer.inputs.model_cache import cached_source
from finetune_trainer.inputs.model_cache.entries import hash_files
from finetune_trainer.storage import S3

__all__ = ["hub_endpoint"]


@pytest.fixture
def hub_model(hub_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CachedModel:
    return make_cached_model("hf://org/model", S3(Storage()), tmp_path, monkeypatch)


def test_model_cache_hub_model_is_downloaded_once(hub_model: CachedModel) -> None:
    assert hub_model.fill().result is CacheResult.FILLED
    HubHandler.requests.clear()
    assert hub_model.fill().result is CacheResult.HIT
    fetched = hub_model.fetch()
    assert (fetched.revision, fetched.license_fields, fetched.files) == (COMMIT, LICENSE, [])
    assert read_folder(fetched.folder) == NEEDED
    assert not [request for request in HubHandler.requests if "safetensors" in request]


@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja"])
def test_model_cache_planted_file_is_refused_by_digest_of_hub(
    hub_model: CachedModel, name: str, tmp_path: Path
) -> None:
    hub_model.fill()
    path, record_path = hub_model.entry.model_dir / name, hub_model.entry.folder / "cache.json"
    path.write_bytes(b"x" * path.stat().st_size)
    record = json.loads(record_path.read_bytes())
    record["files"][name]["sha256"] = hash_files(path.parent, [name])[name]  # the record fits the planted file
    record_path.write_text(json.dumps(record))
    fetched = hub_model.fetch()
    assert (fetched.cache_result, fetched.folder) == (CacheResult.MISS, tmp_path / "scratch" / "model")
    assert hub_model.fill().result is CacheResult.FILLED


def test_model_cache_holds_no_model_of_a_volume(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    source = base_model.resolve_model(ModelSource(uri=f"file://{tmp_path}"), S3(Storage()))
    assert cached_source.get_cacheable(source) is None
