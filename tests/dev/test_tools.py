"""Tests of the Go modules with pinned versions that local clusters are built from."""

import os
from pathlib import Path

import pytest

from local_cluster import tools
from local_cluster.tools import GoModule

ALL_MODULES = [*tools.MODULES, tools.KUEUE, tools.KUBEFLOW_TRAINER]
BY_NAME = {module.name: module for module in tools.MODULES}


@pytest.mark.parametrize("module", ALL_MODULES, ids=lambda module: str(module.name))
def test_go_module_is_pinned_and_declares_its_tools(module: GoModule) -> None:
    text = (module.source / "go.mod").read_text()
    assert (module.source / "go.sum").exists()
    for package in module.packages:
        assert package == "." or f"\n\t{package}\n" in text or f"\ntool {package}\n" in text


def test_kubernetes_version_matches_go_mod() -> None:
    text = (BY_NAME["kubernetes"].source / "go.mod").read_text()
    assert f"k8s.io/kubernetes v{tools.KUBERNETES_VERSION}" in text


@pytest.mark.parametrize(
    ("module", "output"), [("etcd", "/target/etcd"), ("helm", "/target/helm"), ("kubernetes", "/target/")]
)
def test_build_command_output_is_program_name(module: str, output: str) -> None:
    command = BY_NAME[module].build_command("go", Path("/target"))
    assert command[command.index("-o") + 1] == output


# A Go of a recent version whose build writes sources, compiled packages and the program, which is named after `-o`.
FAKE_GO = """#!/bin/sh -e
case $1 in
  env) echo go1.99 ;;
  build) mkdir -p "$GOPATH/pkg/mod" "$GOCACHE"; while [ "$1" != -o ]; do shift; done; echo hello > "$2" ;;
esac
"""


def test_ensure_built_keeps_program_and_removes_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text(FAKE_GO)
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{go.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tools.ensure_built([BY_NAME["etcd"]])
    assert tools.find_program("etcd").read_text() == "hello\n"
    assert not (tmp_path / "finetune-operator" / "go").exists()


def test_go_module_other_build_flags_use_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = BY_NAME["helm"]
    stamped = GoModule(plain.name, plain.packages, plain.programs, "-X other")
    assert plain.folder.parent == stamped.folder.parent == tmp_path / "finetune-operator" / "bin"
    assert plain.folder != stamped.folder


@pytest.mark.parametrize(
    ("text", "version"), [("go1.26.8\n", (1, 26, 8)), ("go1.27", (1, 27)), ("go1.28-rc1", (1, 28)), ("devel", ())]
)
def test_parse_version_go_version_text(text: str, version: tuple[int, ...]) -> None:
    assert tools.parse_version(text) == version
