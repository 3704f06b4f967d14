"""Renders the chart with the real helm."""

import functools
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "finetune-operator"
NO_HELM = "no helm: set HELM to its path, put it on PATH, or run `make cluster-up`, which builds one"

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


def find_helm() -> str | None:
    """helm as the environment names it, as PATH has it, or as the local cluster built it."""
    return os.environ.get("HELM") or shutil.which("helm") or _local_cluster_helm()


def _local_cluster_helm() -> str | None:
    if str(ROOT / "dev") not in sys.path:
        sys.path.append(str(ROOT / "dev"))
    program: Path = importlib.import_module("local_cluster.tools").find_program("helm")
    return str(program) if program.exists() else None


# A cluster with the Prometheus Operator. The self-test is a hook, which `helm install` does not create.
DEFAULT_OPTIONS = ("--skip-tests", "--api-versions", "monitoring.coreos.com/v1")


@functools.cache
def _run_helm_template(helm: str, values: str, options: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [helm, "template", "finetune-operator", str(CHART), "--namespace", "finetune-system", "--values", "-"]
    return subprocess.run([*command, *options], input=values, capture_output=True, text=True, check=False)


@pytest.fixture
def helm() -> str:
    """The path of helm."""
    program = find_helm()
    if program is None:
        pytest.fail(NO_HELM)
    return program


@pytest.fixture
def template(helm: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`helm template` with values on top of the defaults, and other options than the usual ones."""
    return lambda values, *options: _run_helm_template(helm, yaml.safe_dump(dict(values)), options or DEFAULT_OPTIONS)


@pytest.fixture
def render(template: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    """The objects that the chart makes."""

    def render_objects(values: Mapping[str, Any] | None = None, *options: str) -> list[Manifest]:
        result = template(values or {}, *options)
        assert result.returncode == 0, result.stderr
        return [manifest for manifest in yaml.safe_load_all(result.stdout) if manifest]

    return render_objects


@pytest.fixture
def deployment(render: Render) -> Callable[..., Manifest]:
    """The chart's one Deployment."""

    def find_deployment(values: Mapping[str, Any] | None = None) -> Manifest:
        (match,) = (manifest for manifest in render(values) if manifest["kind"] == "Deployment")
        return match

    return find_deployment


@pytest.fixture
def chart() -> Path:
    """The chart's folder."""
    return CHART


@pytest.fixture
def repository() -> Path:
    """The repository's folder."""
    return ROOT
