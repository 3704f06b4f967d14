"""Pods that share a model cache: init containers and trainers, in this process or in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from finetune_trainer.contract import MODEL_CACHE_DIR_ENV, SCRATCH_ENV, CacheResult, ModelSource
from finetune_trainer.inputs import base_model
from finetune_trainer.inputs.model_cache import cached_source, entries, filling
from finetune_trainer.inputs.model_cache.records import FillReport
from finetune_trainer.storage import S3

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

    from finetune_trainer.inputs.base_model import CacheableModelSource, FetchedModel

MODEL = {
    "config.json": b"{}",
    "model-1.safetensors": b"first" * 60_000,
    "model-2.safetensors": b"second" * 60_000,
    "tokenizer.json": b"[]",
}
FILL = [sys.executable, "-m", "finetune_trainer", "cache", "fill"]


@dataclass
class CachedModel:
    """A model in the store, and the folder of a cache."""

    uri: str
    s3: S3
    cache_dir: Path
    scratch: Path

    @property
    def source(self) -> CacheableModelSource:
        """The model as its source lists it now."""
        source = cached_source.get_cacheable(base_model.resolve_model(ModelSource(uri=self.uri), self.s3))
        assert source
        return source

    @property
    def entry(self) -> entries.CacheEntry:
        return entries.CacheEntry.locate(self.cache_dir, self.source)

    def fill(self) -> FillReport:
        """Fill the cache as the init container does."""
        report = filling.fill_cache(self.cache_dir, self.source, self.uri)
        report.write()
        return report

    def fetch(self) -> FetchedModel:
        """Provide the model as the trainer does."""
        cached = cached_source.CachedModelSource(self.source, self.entry, cached_source.read_report())
        target = self.scratch / "model"
        target.mkdir(exist_ok=True)
        return base_model.fetch_model(cached, target, lambda _: None)

    def fetch_uncached(self, target: Path) -> FetchedModel:
        return base_model.fetch_model(self.source, target, lambda _: None)

    def list_cache(self) -> list[str]:
        """Return the names in the folder of the entries."""
        return sorted(path.name for path in (self.cache_dir / entries.LAYOUT_VERSION).iterdir())


@pytest.fixture
def cached_model(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CachedModel:
    """A model in S3, and an empty cache."""
    for name, content in MODEL.items():
        s3.put(f"s3://models/{tmp_path.name}/{name}", content)
    return make_cached_model(f"s3://models/{tmp_path.name}/", S3(s3.storage), tmp_path, monkeypatch)


def make_cached_model(uri: str, s3: S3, folder: Path, monkeypatch: pytest.MonkeyPatch) -> CachedModel:
    for name in ("cache", "scratch"):
        (folder / name).mkdir()
    monkeypatch.setenv(MODEL_CACHE_DIR_ENV, str(folder / "cache"))
    monkeypatch.setenv(SCRATCH_ENV, str(folder / "scratch"))
    return CachedModel(uri, s3, folder / "cache", folder / "scratch")


def read_folder(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextmanager
def mount(folder: Path, *options: str) -> Iterator[None]:
    """Mount a file system at a folder. Skips the test without the permission to mount."""
    if subprocess.run(["mount", *options, folder], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


__all__ = ["FILL", "MODEL", "CacheResult", "CachedModel", "cached_model", "make_cached_model", "mount", "read_folder"]
