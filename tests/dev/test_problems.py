"""What goes wrong for a user is one line that says what to do."""

import os
import platform
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from local_cluster import __main__ as command_line
from local_cluster import debian, network, preflight, shell
from local_cluster.cluster import Cluster
from local_cluster.errors import UserError

Usage = namedtuple("Usage", "total used free")


def _no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def _other_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")


def _other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")


def _full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1 << 40, 1 << 40, 1 << 30))


def _no_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "PACKAGES", {"no-such-program": "some-package"})
    monkeypatch.setattr(preflight, "_check_disk", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda _name: None)


@pytest.mark.parametrize(
    ("spoil", "advice"),
    [
        (_other_system, "virtual machine"),
        (_other_machine, "virtual machine"),
        (_no_root, "sudo"),
        (_full_disk, "make room"),
        (_no_apt, "install some-package"),
    ],
)
def test_what_does_not_hold_is_said_before_anything_is_started(
    spoil: object, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["local_cluster", "up", "some"])
    spoil(monkeypatch)  # type: ignore[operator]
    assert command_line.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert advice in line


def test_an_address_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = network.compute_addresses("test")
    links = [{"ifname": "eth7", "addr_info": [{"local": wanted.node}]}]
    monkeypatch.setattr(network, "_query_ip", lambda *_words: links)
    with pytest.raises(UserError, match=f"address {wanted.node} is taken by eth7: choose another cluster name"):
        network.check_addresses_free(wanted)


@pytest.mark.parametrize("name", ["", "Demo", "-demo", "demo-", "de/mo", "de.mo", "1demo", "x" * 33])
def test_names_that_are_no_labels(name: str) -> None:
    with pytest.raises(UserError, match="is no cluster name"):
        Cluster(name)


def test_asking_a_cluster_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="is not up: bring it up first"):
        _ = Cluster("test").kubeconfig


def test_a_command_that_fails_names_its_log_and_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(UserError, match="sh failed with exit code 3: second") as raised:
        shell.run(["sh", "-c", "echo first; echo second; exit 3"], log)
    assert str(log) in str(raised.value)


def test_a_short_command_that_fails_says_what_it_said() -> None:
    with pytest.raises(UserError, match="no such thing"):
        shell.capture_output(["sh", "-c", "echo no such thing >&2; exit 1"])
