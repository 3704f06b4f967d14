"""Tests of the cache for models of the hub, which gives digests of all files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.trainer.hub_server import COMMIT, LICENSE, NEEDED, HubHandler, hub_endpoint
from tests.support.trainer.model_cache import CachedModel, make_cached_model, read_folder

from finetune_trainer.contract import CacheResult, ModelSource, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import base_model, hub
from finetune_trainer.inputs.model_cache import cached_source, filling
from finetune_trainer.inputs.model_cache.entries import compute_digests
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
    record["files"][name]["sha256"] = compute_digests(path.parent, [name])[name]  # the record fits the planted file
    record_path.write_text(json.dumps(record))
    fetched = hub_model.fetch()
    assert (fetched.cache_result, fetched.folder) == (CacheResult.MISS, tmp_path / "scratch" / "model")
    assert hub_model.fill().result is CacheResult.FILLED


def test_model_cache_file_of_another_size_than_listed_is_not_published(
    hub_model: CachedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = hub.resolve_snapshot("hf://org/model", "main")
    mirror = replace(snapshot, sizes={**snapshot.sizes, "model.safetensors": 0})  # a mirror that lists no sizes
    with pytest.raises(TrainerError, match=r"model\.safetensors has 1000 bytes, but the source has 0"):
        filling.fill_cache(hub_model.cache_dir, base_model.HubModelSource(mirror), hub_model.uri)
    assert hub_model.list_cache() == []


def test_model_cache_holds_no_model_of_a_volume(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    source = base_model.resolve_model(ModelSource(uri=f"file://{tmp_path}"), S3(Storage()))
    assert cached_source.get_cacheable(source) is None


def test_model_cache_holds_no_model_whose_sizes_the_hub_does_not_list(hub_model: CachedModel) -> None:
    snapshot = hub.resolve_snapshot("hf://org/model", "main")
    mirror = replace(snapshot, sizes=dict.fromkeys(snapshot.sizes, 0))
    assert cached_source.get_cacheable(base_model.HubModelSource(mirror)) is None, "each pod would download it twice"
