"""Tests of the size of the scratch volume: what counts as used, and what is refused before it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.trainer.small_disk import mount_disk

from finetune_trainer.contract import SCRATCH_BYTES_ENV, SCRATCH_ENV, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.scratch import ScratchVolume, check_disk_space, find_scratch_volume

GIB = 2**30


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scratch volume of 10 GiB on a disk that has more."""
    monkeypatch.setenv(SCRATCH_ENV, str(tmp_path))
    monkeypatch.setenv(SCRATCH_BYTES_ENV, str(10 * GIB))
    return tmp_path


def test_used_bytes_are_those_that_the_kubelet_counts(tmp_path: Path) -> None:
    before = ScratchVolume(tmp_path, GIB).measure_used()
    (tmp_path / "cache" / "kernels").mkdir(parents=True)
    folders = ScratchVolume(tmp_path, GIB).measure_used() - before
    (tmp_path / "cache" / "kernels" / "rows").write_bytes(b"x" * 1_000_000)
    os.link(tmp_path / "cache" / "kernels" / "rows", tmp_path / "second name")
    (tmp_path / "elsewhere").symlink_to("/usr")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(GIB)
    used = ScratchVolume(tmp_path, GIB).measure_used() - before - folders
    assert 1_000_000 <= used < 1_020_000


def test_check_space_larger_than_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TrainerError, match=r"needs at least 1024\.0 TiB \(base model 1024\.0 TiB\), but .* left; free space there"
    ) as error:
        check_disk_space(tmp_path, {"base model": 2**50, "data": 0})
    assert error.value.reason is Reason.DISK_FULL


def test_check_space_larger_than_volume_is_refused_with_parts(volume: Path) -> None:
    folder = volume / "work"
    folder.mkdir()
    check_disk_space(folder, {"base model": 9 * GIB})
    with pytest.raises(TrainerError) as error:
        check_disk_space(folder, {"base model": 9 * GIB, "data": GIB // 2, "prepared data": GIB // 2})
    assert error.value.reason is Reason.DISK_FULL
    assert error.value.message == (
        f"the run needs at least 10.0 GiB (base model 9.0 GiB, data 512.0 MiB, prepared data 512.0 MiB), but {volume} "
        "has 9.7 GiB of 10.0 GiB left; set compute.scratch.size to 11Gi or more"
    )


def test_check_space_counts_what_is_used_already(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH_BYTES_ENV, "10000000")
    check_disk_space(volume, {"data": 9_000_000})
    (volume / "home").write_bytes(b"x" * 3_000_000)
    with pytest.raises(TrainerError, match=r"needs at least 8\.6 MiB .* has 6\.\d MiB of 9\.5 MiB left"):
        check_disk_space(volume, {"data": 9_000_000})


def test_check_space_smaller_file_system_than_volume_is_refused(volume: Path) -> None:
    with (
        mount_disk(volume / "mounted", 2**20) as folder,
        pytest.raises(TrainerError) as error,
    ):
        check_disk_space(folder, {"data": 2**21})
    assert f"{volume} has 1.0 MiB left, less than the 10.0 GiB of compute.scratch.size; use nodes" in str(error.value)
    assert "set compute.scratch.size" not in str(error.value)


@pytest.mark.parametrize("text", ["0", "-1", "10Gi", "1e9", "²", "9" * 20])
def test_volume_size_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(SCRATCH_BYTES_ENV, text)
    with pytest.raises(TrainerError, match="FINETUNE_SCRATCH_BYTES must be a number of bytes") as error:
        find_scratch_volume(tmp_path)
    assert error.value.reason is Reason.CONFIG_INVALID
