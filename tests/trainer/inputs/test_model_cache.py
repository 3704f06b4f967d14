"""Tests of the model cache: filling, hits, damage, full and read-only volumes."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.faulty_proxy import Fault, FaultyProxy
from tests.support.trainer.model_cache import MODEL, CachedModel, cached_model, mount, read_folder
from tests.support.trainer.untrained_runs import build_config

from finetune_trainer.contract import CacheResult, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.model_cache import cached_source, entries, filling, listing, locking
from finetune_trainer.inputs.resolve import resolve_inputs

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

__all__ = ["cached_model"]
pytestmark = pytest.mark.s3


def test_model_cache_filled_is_read_in_place_like_a_download(cached_model: CachedModel, tmp_path: Path) -> None:
    assert cached_model.fill().result is CacheResult.FILLED
    fetched, downloaded = cached_model.fetch(), cached_model.fetch_uncached(tmp_path / "copy")
    assert (fetched.folder, fetched.cache_result) == (cached_model.entry.model_dir, CacheResult.FILLED)
    assert read_folder(fetched.folder) == MODEL
    assert fetched.revision == downloaded.revision
    assert [replace(file, path=Path()) for file in fetched.files] == [
        replace(file, path=Path()) for file in downloaded.files
    ]
    assert list((tmp_path / "scratch" / "model").iterdir()) == []


def test_model_cache_next_pod_hits_and_downloads_no_weights(cached_model: CachedModel, proxy: FaultyProxy) -> None:
    cached_model.fill()
    proxy.read_paths.clear()
    assert cached_model.fill().result is CacheResult.HIT
    assert cached_model.fetch().cache_result is CacheResult.HIT
    assert not [path for path in proxy.read_paths if "safetensors" in path]


def test_model_cache_changed_model_gets_another_entry(cached_model: CachedModel, s3: S3Server) -> None:
    first = cached_model.fill()
    s3.put(cached_model.uri + "model-2.safetensors", b"third!" * 60_000)
    assert cached_model.fetch().cache_result is CacheResult.MISS
    second = cached_model.fill()
    assert second.result is CacheResult.FILLED
    assert cached_model.list_cache() == sorted([first.entry, second.entry])


def _flip_bit(path: Path) -> None:
    """Change a bit in the middle, and restore the times as far as programs can."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(stat.st_size // 2)
        byte = file.read(1)[0]
        file.seek(stat.st_size // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _replace_by_link(path: Path) -> None:
    content = path.with_name("elsewhere").absolute()
    path.rename(content.parents[1] / "elsewhere")
    path.symlink_to(content.parents[1] / "elsewhere")


DAMAGE = {
    "a bit of the weights": ("model-1.safetensors", _flip_bit),
    "a bit of the settings": ("tokenizer.json", _flip_bit),
    "truncated weights": ("model-2.safetensors", lambda path: os.truncate(path, 1000)),
    "sparse weights": ("model-2.safetensors", lambda path: path.write_bytes(bytes(path.stat().st_size))),
    "a missing file": ("model-2.safetensors", Path.unlink),
    "an additional file": ("chat_template.jinja", lambda path: path.write_text("{{ 1 }}")),
    "code": ("modeling.py", lambda path: path.write_text("import os")),
    "a link": ("model-1.safetensors", _replace_by_link),
    "a pipe": ("config.json", lambda path: (path.unlink(), os.mkfifo(path))),
    "a pipe as record": ("../cache.json", lambda path: (path.unlink(), os.mkfifo(path))),
    "a record of another file": (
        "../cache.json",
        lambda path: path.write_text(path.read_text().replace("config", "x")),
    ),
    "an invalid record": ("../cache.json", lambda path: path.write_text("{")),
    "no record": ("../cache.json", Path.unlink),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_model_cache_damaged_entry_is_a_miss_and_is_repaired(
    cached_model: CachedModel, name: str, damage: object, tmp_path: Path
) -> None:
    cached_model.fill()
    assert callable(damage)
    damage(cached_model.entry.model_dir / name)
    (tmp_path / "scratch" / "model-cache.json").unlink()  # that of another pod
    fetched = cached_model.fetch()
    assert (fetched.cache_result, fetched.folder) == (CacheResult.MISS, tmp_path / "scratch" / "model")
    assert read_folder(fetched.folder) == MODEL
    assert cached_model.fill().result is CacheResult.FILLED
    assert read_folder(cached_model.fetch().folder) == MODEL
    assert cached_model.list_cache() == [cached_model.entry.digest]


def test_model_cache_damage_after_the_init_container_is_a_miss(cached_model: CachedModel) -> None:
    cached_model.fill()
    _flip_bit(cached_model.entry.model_dir / "model-1.safetensors")
    assert cached_model.fetch().cache_result is CacheResult.MISS


def test_model_cache_damaged_entry_counts_as_weights_to_download(
    cached_model: CachedModel, s3: S3Server, tmp_path: Path
) -> None:
    s3.put("s3://data/rows/a.jsonl", b"{}")
    config = build_config(s3, f"s3://results/{tmp_path.name}", model={"uri": cached_model.uri})
    cached_model.fill()
    inputs = cached_source.use_cache(resolve_inputs(config, cached_model.s3))
    assert inputs.model.size == 0
    assert cached_source.skip_unused_cache(inputs, cached_model.fetch()) is inputs
    _flip_bit(cached_model.entry.model_dir / "model-1.safetensors")
    assert cached_source.skip_unused_cache(inputs, cached_model.fetch()).model.size == cached_model.source.size


def test_model_cache_verified_by_init_container_is_not_read_again(
    cached_model: CachedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_model.fill()
    monkeypatch.setattr(entries, "compute_digests", lambda *_: pytest.fail("read again"))
    assert cached_model.fetch().cache_result is CacheResult.FILLED


def test_model_cache_full_volume_is_a_miss_without_remains(cached_model: CachedModel) -> None:
    with mount(cached_model.cache_dir, "-t", "tmpfs", "-o", "size=400k", "tmpfs"):
        with pytest.raises(TrainerError) as error:
            cached_model.fill()
        assert error.value.reason is Reason.DISK_FULL
        assert "delete unused entries" in error.value.message
        assert cached_model.list_cache() == []


def test_model_cache_volume_full_while_filling_has_no_remains(
    cached_model: CachedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_check_space", lambda *_: None)  # another pod takes the space after the check
    with mount(cached_model.cache_dir, "-t", "tmpfs", "-o", "size=400k", "tmpfs"):
        with pytest.raises(OSError, match="No space left"):
            cached_model.fill()
        assert [name for name in cached_model.list_cache() if not name.endswith(".discarded")] == []
        assert cached_model.fetch().cache_result is CacheResult.MISS


def test_model_cache_read_only_volume_serves_hits(cached_model: CachedModel) -> None:
    cached_model.fill()
    with mount(cached_model.cache_dir, "--bind", "-o", "ro", str(cached_model.cache_dir)):
        assert cached_model.fetch().cache_result is CacheResult.FILLED


def test_model_cache_network_error_has_no_remains(cached_model: CachedModel, proxy: FaultyProxy) -> None:
    proxy.truncations_left = 1000
    with pytest.raises(TrainerError):
        cached_model.fill()
    proxy.truncations_left = 0
    assert [name for name in cached_model.list_cache() if not name.endswith(".discarded")] == []
    assert cached_model.fill().result is CacheResult.FILLED


def test_model_cache_leftovers_are_removed(cached_model: CachedModel) -> None:
    folder = cached_model.entry.folder.parent
    old, recent, discarded = folder / ".a.filling", folder / ".b.filling", folder / ".c.discarded"
    for path in (old / "token" / "model", recent / "token" / "model", discarded / "model"):
        path.mkdir(parents=True)
    an_hour_ago = time.time() - locking.LEFTOVER_SECONDS - 60
    for path in (old / "token", old):
        os.utime(path, (an_hour_ago, an_hour_ago))
    cached_model.fill()
    assert cached_model.list_cache() == [".b.filling", cached_model.entry.digest]


def test_model_cache_holder_that_dies_is_replaced(cached_model: CachedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(locking, "_POLL_SECONDS", 0.05)
    lock = locking.get_lock_path(cached_model.entry)
    (lock / "token" / "model").mkdir(parents=True)
    assert cached_model.fill().result is CacheResult.FILLED
    assert cached_model.list_cache() == [cached_model.entry.digest]


def test_model_cache_holder_that_lives_is_waited_for(
    cached_model: CachedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"BEAT_SECONDS": 0.05, "STALE_SECONDS": 0.4, "_POLL_SECONDS": 0.05}.items():
        monkeypatch.setattr(locking, name, seconds)
    entry = cached_model.entry
    entry.folder.parent.mkdir()
    with locking.lock_entry(entry), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(locking.wait_for_holder, entry, time.monotonic() + 1)
        assert waiting.result() is False  # the deadline has passed, and the lock was not taken
        assert locking.get_lock_path(entry).is_dir()


def test_model_cache_holder_that_is_replaced_publishes_nothing(cached_model: CachedModel) -> None:
    cached_model.entry.folder.parent.mkdir()
    with locking.lock_entry(cached_model.entry) as folder:
        assert folder
        (folder / "model").mkdir()
        locking.discard(folder.parent)  # by a pod that considers this one dead
        with locking.lock_entry(cached_model.entry) as other:
            assert other
            with pytest.raises(FileNotFoundError):
                folder.rename(cached_model.entry.folder)
            assert other.is_dir()
    assert cached_model.list_cache() == []


def test_model_cache_busy_for_too_long_is_a_miss(cached_model: CachedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "MAX_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(locking, "_POLL_SECONDS", 0.05)
    cached_model.entry.folder.parent.mkdir()
    with locking.lock_entry(cached_model.entry):
        with pytest.raises(TrainerError, match="other pods have been filling"):
            cached_model.fill()
        assert locking.get_lock_path(cached_model.entry).is_dir()


def test_model_cache_list_shows_size_and_last_use(cached_model: CachedModel) -> None:
    report = cached_model.fill()
    record = cached_model.entry.folder / "cache.json"
    os.utime(record, (time.time() - 7200, time.time() - 7200))
    partial = cached_model.entry.folder.with_name(".x.filling")
    partial.mkdir()
    header, row, incomplete, summary = listing.format_entries(
        cached_model.cache_dir, listing.list_entries(cached_model.cache_dir)
    ).splitlines()
    assert header.split("  ")[0] == "SIZE"
    assert "2 h 0 min ago" in row
    assert row.endswith(str(cached_model.entry.folder))
    assert cached_model.uri in row
    assert "(incomplete)" in incomplete
    assert summary.startswith("2 entries, 64")
    assert cached_model.fill().entry == report.entry
    assert time.time() - record.stat().st_mtime < 60  # the last use is recorded


def test_model_cache_list_beside_pods_that_fill_and_remove_is_complete(cached_model: CachedModel) -> None:
    cached_model.fill()
    finished, root = Event(), cached_model.entry.folder.parent

    def fill_and_remove() -> None:
        for number in count():
            if finished.is_set():
                return
            for name in "abcd":
                (root / f".{number}" / "model" / name).mkdir(parents=True)
            shutil.rmtree(root / f".{number}")

    with ThreadPoolExecutor(1) as pool:
        pods = pool.submit(fill_and_remove)
        try:
            lists = [listing.list_entries(cached_model.cache_dir) for _ in range(60)]
        finally:
            finished.set()
    pods.result()
    assert all(entries[0].folder == cached_model.entry.folder for entries in lists)


def test_model_cache_denied_model_is_not_read_from_it(cached_model: CachedModel, proxy: FaultyProxy) -> None:
    cached_model.fill()
    proxy.faults = [Fault("403", key="config.json", times=10)]
    with pytest.raises(TrainerError) as error:
        cached_model.fetch()
    assert error.value.reason is Reason.ACCESS_DENIED
