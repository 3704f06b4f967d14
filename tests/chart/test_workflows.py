"""Tests of the workflows on GitHub, which cannot run here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_cluster import tools

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED_ACTION = re.compile(r"[\w-]+/[\w./-]+@[0-9a-f]{40}")


def test_workflows_are_accepted_by_actionlint() -> None:
    tools.ensure_built()
    done = subprocess.run(
        [tools.find_program("actionlint"), "-shellcheck=", "-pyflakes=", *WORKFLOWS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_actions_are_pinned_and_name_their_version(path: Path) -> None:
    lines = [line.partition("uses: ")[2] for line in path.read_text().splitlines() if "uses: " in line]
    assert lines
    for line in lines:
        action, _, version = line.partition("  # v")
        assert PINNED_ACTION.fullmatch(action), line
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), line


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_jobs_have_only_named_permissions(path: Path) -> None:
    workflow: dict[str, Any] = yaml.safe_load(path.read_text())
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for name, job in workflow["jobs"].items():
        checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert all(step["with"]["persist-credentials"] is False for step in checkouts), name


def test_release_images_are_targets_of_dockerfiles() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    for image in workflow["jobs"]["image"]["strategy"]["matrix"]["include"]:
        stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / image["dockerfile"]).read_text(), re.MULTILINE)
        assert {image["target"], f"{image['target']}-sbom"} <= set(stages), image
