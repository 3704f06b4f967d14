"""Tests of the errors that users see: one line each, with what to do."""

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


def _drop_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def _use_other_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")


def _use_other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")


def _fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1 << 40, 1 << 40, 1 << 30))


def _remove_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "PACKAGES", {"no-such-program": "some-package"})
    monkeypatch.setattr(preflight, "_check_disk", lambda _parts: None)
    monkeypatch.setattr(shutil, "which", lambda _name: None)


@pytest.mark.parametrize(
    ("break_host", "advice"),
    [
        (_use_other_system, "virtual machine"),
        (_use_other_machine, "virtual machine"),
        (_drop_root, "sudo"),
        (_fill_disk, "free some space"),
        (_remove_apt, "install some-package"),
    ],
)
def test_main_preflight_fails_prints_advice(
    break_host: object, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["local_cluster", "up", "some"])
    break_host(monkeypatch)  # type: ignore[operator]
    assert command_line.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert advice in line


def test_check_addresses_free_taken_address_names_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = network.compute_addresses("test")
    links = [{"ifname": "eth7", "addr_info": [{"local": addresses.node}]}]
    monkeypatch.setattr(network, "_query_ip", lambda *_words: links)
    with pytest.raises(UserError, match=f"address {addresses.node} is taken by eth7: choose another cluster name"):
        network.check_addresses_free(addresses)


@pytest.mark.parametrize("name", ["", "Demo", "-demo", "demo-", "de/mo", "de.mo", "1demo", "x" * 33])
def test_cluster_invalid_name_raises(name: str) -> None:
    with pytest.raises(UserError, match="is not a valid cluster name"):
        Cluster(name)


def test_cluster_kubeconfig_while_down_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="is not running: start it with `make cluster-up NAME=test`"):
        _ = Cluster("test").kubeconfig


def test_run_failing_command_names_log_and_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(UserError, match="sh failed with exit code 3: second") as raised:
        shell.run(["sh", "-c", "echo first; echo second; exit 3"], log)
    assert str(log) in str(raised.value)


def test_capture_output_failing_command_shows_stderr() -> None:
    with pytest.raises(UserError, match="no such thing"):
        shell.capture_output(["sh", "-c", "echo no such thing >&2; exit 1"])
