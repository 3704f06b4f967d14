"""The chart and install.yaml of a release, whose images are those that were released."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from release.__main__ import main
from release.chart import IMAGE_NAMES
from release.version import ROOT

REGISTRY = "registry.example:5000/team"
IMAGES = {name: f"{REGISTRY}/{name}@sha256:{str(number) * 64}" for number, name in enumerate(IMAGE_NAMES, start=1)}


@pytest.fixture
def target(helm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder with the chart and the manifest of a release."""
    monkeypatch.setenv("HELM", helm)
    options = [word for image in IMAGES.values() for word in ("--image", image)]
    assert main(["chart", str(tmp_path / "release"), *options, "--repository", "https://code.example/finetune"]) == 0
    return tmp_path / "release"


def test_release_chart_uses_images_by_digest(target: Path) -> None:
    manifest = (target / "install.yaml").read_text()
    deployment = next(each for each in yaml.safe_load_all(manifest) if each and each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert container["image"] == IMAGES["finetune-operator"]
    assert environment["FINETUNE_OPERATOR_TRAINER_IMAGE"] == IMAGES["finetune-trainer"]
    assert environment["FINETUNE_OPERATOR_TASK_IMAGE"] == IMAGES["finetune-task"]
    chart = yaml.safe_load((target / "finetune-operator" / "Chart.yaml").read_text())
    listed = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])
    assert {each["image"] for each in listed} == set(IMAGES.values())


def test_release_chart_keeps_comments_and_other_values(target: Path) -> None:
    lines = (target / "finetune-operator" / "values.yaml").read_text().splitlines()
    original = (ROOT / "charts" / "finetune-operator" / "values.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(original, lines, strict=True) if old != new]
    assert {new.split(":")[0].strip() for _, new in changed} == {"registry", "repository", "digest"}
    assert len(changed) == 7  # two repositories have the name already
