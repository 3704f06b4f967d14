"""The CRDs are in the chart byte for byte, and outlive the release."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune_operator.settings import Settings

Manifest = dict[str, Any]
Template = Callable[[Mapping[str, Any]], subprocess.CompletedProcess[str]]


def filter_crds(objects: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in objects if manifest["kind"] == "CustomResourceDefinition"]


def test_chart_crd_is_rendered_byte_for_byte(template: Template, chart: Path) -> None:
    rendered = template({}).stdout
    for document in (chart / "crd.yaml").read_text().split("---\n")[1:]:
        assert document in rendered


def test_chart_crd_common_labels_change_only_labels(render: Callable[..., list[Manifest]]) -> None:
    plain, labelled = filter_crds(render()), filter_crds(render({"commonLabels": {"team": "ml"}}))
    assert [crd["metadata"].pop("labels") for crd in labelled] == [{"team": "ml"}] * 3
    assert labelled == plain


def test_chart_crds_disabled_renders_no_crd(render: Callable[..., list[Manifest]]) -> None:
    assert len(filter_crds(render())) == 3
    assert filter_crds(render({"crds": {"enabled": False}})) == []


def test_chart_crd_is_kept_on_uninstall(render: Callable[..., list[Manifest]]) -> None:
    for crd in filter_crds(render()):
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_chart_app_version_matches_package_and_image(chart: Path, repository: Path) -> None:
    meta = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert f'version = "{meta["appVersion"]}"' in (repository / "pyproject.toml").read_text()
    assert Settings().trainer_image.endswith(f":{meta['appVersion']}")
