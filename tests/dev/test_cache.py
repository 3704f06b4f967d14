"""Tests of cache folders, which appear only when complete, and of the state files of a cluster."""

from pathlib import Path

import pytest

from local_cluster import cache, state


def test_replace_folder_target_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "entry"
    with cache.replace_folder(target) as partial:
        (partial / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"


def test_replace_folder_failed_block_leaves_no_target(tmp_path: Path) -> None:
    target = tmp_path / "entry"
    with pytest.raises(FileNotFoundError), cache.replace_folder(target) as partial:
        (partial / "no-such-folder" / "file").touch()
    assert not target.exists()
    with cache.replace_folder(target):
        pass
    assert list(target.iterdir()) == []


def test_state_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert state.read("test") is None
    (tmp_path / "finetune-operator" / "clusters" / "test").mkdir(parents=True)
    written = state.ClusterState("/kubeconfig", "http://198.18.0.2:7070", "key", "secret", "us-east-1")
    state.write("test", written)
    assert state.read("test") == written


def test_state_alive_while_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not state.is_alive("test")
    with state.acquire_lock("test"):
        assert state.is_alive("test")
    assert not state.is_alive("test")
