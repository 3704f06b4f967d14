"""The chart's environment is the one that the operator reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.chart.deployment_environment import read_environment

from finetune_operator.policy.defaults import Defaults
from finetune_operator.policy.limits import Bounds
from finetune_operator.settings import Settings

Manifest = dict[str, Any]
PREFIX = "FINETUNE_OPERATOR_"
# The probes of the chart need the default.
NOT_IN_THE_CHART = {"health_port"}
RELEASE_SETTINGS = {
    "lease_namespace": "finetune-system",
    "installation_id": "finetune-system/finetune-operator",
    "profiles_file": Path("/etc/finetune-operator/profiles/profiles.json"),
}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "metrics": ({"metrics": {"port": 9100, "maxJobs": 7}}, {"metrics_port": 9100, "metrics_max_jobs": 7}),
    "namespaces": ({"watchNamespaces": ["team-a", "team-b"]}, {"watch_namespaces": ["team-a", "team-b"]}),
    "namespaces by label": (
        {"watchNamespaceSelector": "finetune.dev/enabled=true,team in (a,b)"},
        {"watch_namespace_selector": "finetune.dev/enabled=true,team in (a,b)"},
    ),
    "installation": ({"installationId": "old/release"}, {"installation_id": "old/release"}),
    "trainer": (
        {
            "trainer": {"image": "registry.example/trainer@sha256:0", "imagePullPolicy": "Never"},
            "task": {"image": {"registry": "registry.example", "repository": "task"}},
        },
        {
            "trainer_image": "registry.example/trainer@sha256:0",
            "trainer_image_pull_policy": "Never",
            "task_image": "registry.example/task:0.1.0",
        },
    ),
    "bounds": (
        {"bounds": {"allowedImages": ["r.example/ml/**"], "maxGPUs": 0, "requiredNodeSelector": {"pool": "a"}}},
        {
            "bounds": {
                **Bounds().model_dump(),
                "allowed_images": ["r.example/ml/**"],
                "max_gpus": 0,
                "required_node_selector": {"pool": "a"},
            }
        },
    ),
    "what is left open": (
        {
            "defaults": {
                "storage": {"endpoint": "http://minio:9000", "credentialsSecretRef": {"name": "minio"}},
                "nodeSelector": {"pool": "gpus"},
                "serviceAccountName": "finetune",
                "allowNodeIdentity": True,
            }
        },
        {
            "defaults": Defaults.model_validate(
                {
                    "storage": {"endpoint": "http://minio:9000", "credentialsSecretRef": {"name": "minio"}},
                    "nodeSelector": {"pool": "gpus"},
                    "serviceAccountName": "finetune",
                    "allowNodeIdentity": True,
                }
            ).model_dump()
        },
    ),
    "numbers": (
        {
            "settings": {
                "progressInterval": 3,
                "resyncInterval": 60,
                "checkpointRetentionSeconds": 31536000,
                "workers": 2,
                "requestTimeout": 60,
                "leaseName": "finetune",
                "leaseSeconds": 15,
                "logLevel": "debug",
                "logFormat": "json",
            }
        },
        {
            "progress_interval": 3,
            "resync_interval": 60,
            "workers": 2,
            "request_timeout": 60,
            "lease_name": "finetune",
            "lease_seconds": 15,
            "checkpoint_retention_seconds": 31536000,
            "log_level": "debug",
            "log_format": "json",
        },
    ),
    "no retention": ({"settings": {"checkpointRetentionSeconds": None}}, {"checkpoint_retention_seconds": 0}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_rendered_environment_gives_expected_values(
    deployment: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    values, expected = VARIANTS[variant]
    built_in = Settings().model_dump()
    for name, value in read_environment(deployment(values)).items():
        monkeypatch.setenv(name, value)
    assert Settings().model_dump() == {**built_in, **RELEASE_SETTINGS, **expected}


@pytest.mark.parametrize(("part", "model"), [("bounds", Bounds), ("defaults", Defaults)])
def test_values_schema_has_every_settings_field(chart: Path, part: str, model: type[Bounds | Defaults]) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    assert set(schema["properties"][part]["properties"]) == {field.alias for field in model.model_fields.values()}


def test_values_schema_bounds_patterns_match_operator(chart: Path) -> None:
    """Helm and the operator accept and reject the same values."""
    schema = json.loads((chart / "values.schema.json").read_text())
    for name, field in Bounds.model_json_schema()["properties"].items():
        if field.get("type") != "array":
            continue
        chart_schema = schema["definitions"][
            schema["properties"]["bounds"]["properties"][name]["$ref"].rpartition("/")[2]
        ]
        operator_items = {key: field["items"][key] for key in ("type", "pattern", "maxLength")}
        assert (chart_schema["items"], chart_schema["maxItems"]) == (operator_items, field["maxItems"]), name


def test_chart_environment_sets_every_setting(deployment: Callable[..., Manifest]) -> None:
    rendered = read_environment(deployment(VARIANTS["trainer"][0]))
    expected = {PREFIX + name.upper() for name in set(Settings.model_fields) - NOT_IN_THE_CHART}
    assert set(rendered) == expected
