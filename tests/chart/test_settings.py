"""The chart's environment is the one that the operator reads."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_operator.settings import Settings

Manifest = dict[str, Any]
PREFIX = "FINETUNE_OPERATOR_"
# Settings for developers; the chart leaves them at their defaults.
NOT_IN_THE_CHART = {"liveness_endpoint", "request_timeout"}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "namespaces": ({"watchNamespaces": ["team-a", "team-b"]}, {"watch_namespaces": ["team-a", "team-b"]}),
    "trainer": (
        {"trainer": {"image": "registry.example/trainer@sha256:0", "imagePullPolicy": "Never"}},
        {"trainer_image": "registry.example/trainer@sha256:0", "trainer_image_pull_policy": "Never"},
    ),
    "numbers": (
        {"settings": {"progressInterval": 3, "resyncInterval": 60, "workers": 2, "logLevel": "debug"}},
        {"progress_interval": 3, "resync_interval": 60, "workers": 2, "log_level": "debug"},
    ),
}


def environment(deployment: Manifest) -> dict[str, str]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert all(set(each) == {"name", "value"} for each in container["env"]), "plain values only"
    return {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_start_from_the_rendered_environment(
    deployment: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    values, expected = VARIANTS[variant]
    built_in = Settings().model_dump()
    for name, value in environment(deployment(values)).items():
        monkeypatch.setenv(name, value)
    assert Settings().model_dump() == {**built_in, **expected}


def test_the_chart_sets_every_setting_and_no_other(deployment: Callable[..., Manifest]) -> None:
    rendered = environment(deployment(VARIANTS["trainer"][0]))
    expected = {PREFIX + name.upper() for name in set(Settings.model_fields) - NOT_IN_THE_CHART}
    assert set(rendered) == expected
