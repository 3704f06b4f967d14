"""The CRD is in the chart byte for byte, and outlives the release."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune_operator.settings import Settings

Manifest = dict[str, Any]
Template = Callable[[Mapping[str, Any]], subprocess.CompletedProcess[str]]


def crds(objects: list[Manifest]) -> list[Manifest]:
    return [each for each in objects if each["kind"] == "CustomResourceDefinition"]


def test_the_crd_is_rendered_byte_for_byte(template: Template, chart: Path) -> None:
    assert (chart / "crd.yaml").read_text().strip() in template({}).stdout


def test_the_crd_can_be_left_to_somebody_else(render: Callable[..., list[Manifest]]) -> None:
    assert len(crds(render())) == 1
    assert crds(render({"crds": {"enabled": False}})) == []


def test_the_crd_stays_when_the_release_goes(render: Callable[..., list[Manifest]]) -> None:
    (crd,) = crds(render())
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_versions_agree(chart: Path, repository: Path) -> None:
    meta = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert f'version = "{meta["appVersion"]}"' in (repository / "pyproject.toml").read_text()
    assert Settings().trainer_image.endswith(f":{meta['appVersion']}")
