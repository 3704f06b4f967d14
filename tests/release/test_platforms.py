"""Tests of the platforms that the lock file covers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[2]
PYTHON = (3, 12)
"""Python of the images."""
PURE_SOURCES = {"rouge-score"}
"""Packages of pure Python that are published without a wheel."""


def list_tags(machine: str) -> set[Tag]:
    """Return the tags of wheels that Debian 12 and newer install on a machine."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(36, 4, -1)]
    platforms += [f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    return {*cpython_tags(PYTHON, platforms=platforms), *compatible_tags(PYTHON, platforms=platforms)}


def find_uv() -> str:
    """Return the program that `make setup` has used."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = shutil.which("uv", path=f"{os.environ['PATH']}:{cache / 'finetune-operator' / 'uv' / 'bin'}")
    assert program, "uv is not installed: run make setup"
    return program


def list_requirements(extras: Sequence[str], machine: str) -> list[tuple[str, str]]:
    """Return name and version of the locked packages that extras install on a machine."""
    options = ["--frozen", "--no-dev", "--no-emit-project", "--no-hashes", "--quiet"]
    output = subprocess.run(
        [find_uv(), "export", *options, *(f"--extra={extra}" for extra in extras)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.strip() for line in output.splitlines()]
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    environment = {"sys_platform": "linux", "platform_machine": machine, "python_version": "3.12"}
    return [
        (each.name, next(iter(each.specifier)).version)
        for each in requirements
        if each.marker is None or each.marker.evaluate({**environment, "python_full_version": "3.12.8"})
    ]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("extra", ["operator", "trainer", "unsloth", "task"])
def test_lock_extra_of_an_image_has_wheels_for_the_machine(extra: str, machine: str) -> None:
    lock: dict[str, Any] = tomllib.loads((ROOT / "uv.lock").read_text())
    packages = {(package["name"], package.get("version")): package for package in lock["package"]}
    tags = list_tags(machine)
    requirements = list_requirements([extra], machine)
    missing = {
        name
        for name, version in requirements
        if not any(
            parse_wheel_filename(wheel["url"].rpartition("/")[2])[3] & tags
            for wheel in packages[name, version].get("wheels", [])
        )
    }
    assert len(requirements) > 20
    assert missing <= PURE_SOURCES


@pytest.mark.parametrize(
    ("image", "extras"),
    [("finetune-operator", ["operator"]), ("finetune-trainer", ["trainer", "unsloth"]), ("finetune-task", ["task"])],
)
def test_number_of_packages_in_documentation_is_that_of_the_lock(image: str, extras: list[str]) -> None:
    page = (ROOT / "docs" / "reference" / "images.md").read_text()
    row = re.search(rf"^\| `{image}` \|.*\| (\d+) \|[^|]*\|$", page, re.MULTILINE)
    assert row
    assert int(row[1]) == len(list_requirements(extras, "x86_64"))
