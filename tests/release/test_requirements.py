"""Tests of what the images and the wheel install: code of ours imports each direct requirement."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SHARED = ("operator/finetune_operator", "trainer/finetune_trainer")
SOURCES = {
    "operator": SHARED,
    "trainer": ("trainer/finetune_trainer",),
    "task": ("trainer/finetune_trainer",),
    "unsloth": ("trainer/finetune_trainer",),
    "serving": ("trainer/finetune_trainer", "serving/finetune_serving"),
    "client": SHARED,
    "cli": (*SHARED, "cli/finetune_cli"),
}
"""The packages that each extra is for."""
IMPORTED_ELSEWHERE = {"tzdata": "read by zoneinfo", "pyopenssl": "imported by model-signing"}


@pytest.fixture(scope="module")
def modules_of_packages() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for module, packages in metadata.packages_distributions().items():
        for package in packages:
            found.setdefault(canonicalize_name(package), set()).add(module)
    return found


def list_imports(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


@pytest.mark.parametrize("extra", SOURCES)
def test_requirements_of_an_extra_are_all_imported(extra: str, modules_of_packages: dict[str, set[str]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(SOURCES) == set(project["optional-dependencies"])
    imported = {name for source in SOURCES[extra] for name in list_imports(ROOT / source)}
    names = {canonicalize_name(Requirement(line).name) for line in project["optional-dependencies"][extra]}
    names -= {project["name"], *IMPORTED_ELSEWHERE}
    assert {name for name in names if not modules_of_packages[name] & imported} == set()


def test_inventory_of_an_environment_is_valid_and_has_the_locked_versions(tmp_path: Path) -> None:
    """The targets `…-sbom` of the Dockerfiles run this command in the images."""
    names = ("torch", "transformers", "boto3")
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    for name in names:
        folder = Path(str(metadata.distribution(name).locate_file(f"{name}-{metadata.version(name)}.dist-info")))
        shutil.copytree(folder, packages / folder.name)
    target = tmp_path / "sbom.cdx.json"
    program = Path(sys.executable).parent / "cyclonedx-py"
    command = [program, "environment", "--output-reproducible", "--validate", "--of", "JSON", "-o", target, environment]
    subprocess.run(command, check=True, capture_output=True)
    components = {each["name"]: each for each in json.loads(target.read_text())["components"]}
    packages_of_lock = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    locked = {package["name"]: package.get("version") for package in packages_of_lock}
    assert set(components) == set(names)
    for name in names:
        assert components[name]["version"] == locked[name]
        assert components[name]["purl"] == f"pkg:pypi/{name}@{locked[name]}"
    assert components["boto3"]["licenses"]
