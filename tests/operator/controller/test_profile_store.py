"""The file of compute profiles while it changes: as the kubelet replaces it, and with invalid content."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from pathlib import Path

import pytest

from finetune_operator.__main__ import main
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.policy.profiles import Profiles, ProfilesError


def _write(folder: Path, content: str) -> Path:
    file = folder / "profiles.json"
    file.write_text(content)
    return file


def _dump(name: str, size: int = 1) -> str:
    """Return a file with profiles `NAME-0`, `NAME-1` and so on."""
    return json.dumps({"profiles": {f"{name}-{number}": {} for number in range(size)}, "defaultProfile": f"{name}-0"})


def test_store_without_path_has_no_profiles() -> None:
    store = ProfileStore(None)
    assert store.read() == Profiles()
    assert store.check()


def test_store_changed_file_is_read_again(tmp_path: Path) -> None:
    store = ProfileStore(_write(tmp_path, _dump("a")))
    assert set(store.read().profiles) == {"a-0"}
    _write(tmp_path, _dump("b"))
    assert set(store.read().profiles) == {"b-0"}


def test_store_unchanged_file_is_parsed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        store = ProfileStore(_write(tmp_path, _dump("a")))
        assert store.read() is store.read()
    assert [record.getMessage() for record in caplog.records] == ["read the compute profiles: a-0"]


@pytest.mark.parametrize("content", ["{", "", '{"profiles": {"a": {"podSpec": {"hostPID": true}}}}', None])
def test_store_invalid_file_keeps_last_valid_profiles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    store = ProfileStore(_write(tmp_path, _dump("a")))
    file = _write(tmp_path, content or "")
    if content is None:
        file.unlink()
    with caplog.at_level(logging.ERROR):
        assert [set(store.read().profiles) for _ in range(3)] == [{"a-0"}] * 3
    assert not store.check()
    (record,) = caplog.records  # logged once
    assert str(file) in record.getMessage()
    _write(tmp_path, _dump("b"))
    assert set(store.read().profiles) == {"b-0"}
    assert store.check()


@pytest.mark.parametrize("content", ["", '{"profiles": {"a": {"podSpec": {"hostPID": true}}}}', None])
def test_store_invalid_file_at_start_raises(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "profiles.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ProfilesError, match=r"profiles\.json"):
        ProfileStore(file)


def test_main_invalid_profiles_exits_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _write(tmp_path, '{"profiles": {"a": {"podSpec": {"hostPath": "/"}}}}')
    monkeypatch.setenv("FINETUNE_OPERATOR_PROFILES_FILE", str(file))
    with pytest.raises(SystemExit) as exit_:
        main()
    message = str(exit_.value)
    assert f"{file}: profiles.a.podSpec: unknown field hostPath; allowed fields: affinity, " in message
    assert "\n" not in message


def test_store_file_swapped_while_reading_is_never_mixed(tmp_path: Path) -> None:
    """The kubelet writes a new folder, renames a symbolic link to it, and removes the old folder."""
    versions = {name: _dump(name, size=200) for name in ("a", "b")}

    def swap(number: int) -> None:
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "profiles.json").write_text(versions["ab"[number % 2]])
        (tmp_path / "..data_tmp").symlink_to(folder.name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        shutil.rmtree(tmp_path / f"..{number - 1}", ignore_errors=True)

    swap(0)
    (tmp_path / "profiles.json").symlink_to("..data/profiles.json")
    store = ProfileStore(tmp_path / "profiles.json")
    writer = threading.Thread(target=lambda: [swap(number) for number in range(1, 60)])
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(frozenset(store.read().profiles))
    writer.join()
    assert seen <= {frozenset(json.loads(text)["profiles"]) for text in versions.values()}
    assert store.check()
    assert "b-0" in store.read().profiles
