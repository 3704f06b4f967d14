"""Values: each is used, each is in the schema, wrong ones are refused before anything is installed."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

Template = Callable[[Mapping[str, Any]], subprocess.CompletedProcess[str]]

# One other value for each; maps that a user fills freely count as one value.
OTHER_VALUES: dict[str, Any] = {
    "image": "registry.example/finetune-operator:1.2.3",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 2,
    "trainer.image": "registry.example/finetune-trainer:1.2.3",
    "trainer.imagePullPolicy": "Always",
    "task.image": "registry.example/finetune-task:1.2.3",
    "watchNamespaces": ["team-a"],
    "bounds.allowedNamespaces": ["ml-*"],
    "bounds.deniedNamespaces": ["kube-*"],
    "bounds.allowedImages": ["registry.example/ml/*@sha256:*"],
    "bounds.allowedServiceAccounts": ["finetune"],
    "bounds.allowedSecrets": ["finetune-*"],
    "bounds.allowedConfigMaps": ["company-ca"],
    "bounds.allowedStorageEndpoints": ["aws", "https://*.s3.example"],
    "bounds.allowedTrackers": ["wandb", "https://*.mlflow.example"],
    "bounds.allowedModels": ["hf://**", "s3://models/**"],
    "bounds.allowedDatasets": ["hf://datasets/org/*", "s3://data/**", "pvc://data/**"],
    "bounds.allowedPriorityClasses": ["batch"],
    "bounds.allowedTolerations": ["gpu"],
    "bounds.allowedGPUResources": ["nvidia.com/*"],
    "bounds.allowedResources": ["rdma/*"],
    "bounds.allowedPodLabels": ["team"],
    "bounds.allowedPodAnnotations": ["example.com/*"],
    "bounds.requiredNodeSelector": {"pool": "tenants"},
    "bounds.maxGPUs": 0,
    "bounds.maxNodes": 4,
    "defaults.storage": {"endpoint": "http://minio:9000"},
    "defaults.nodeSelector": {"pool": "gpus"},
    "defaults.tolerations": [{"key": "gpu", "operator": "Exists"}],
    "defaults.serviceAccountName": "finetune",
    "defaults.imagePullSecrets": [{"name": "registry"}],
    "defaults.priorityClassName": "batch",
    "defaults.scratchStorageClassName": "fast",
    "defaults.allowNodeIdentity": True,
    "networkPolicy.enabled": True,
    "networkPolicy.namespaces": ["team-a"],
    "networkPolicy.dns": [{"ipBlock": {"cidr": "169.254.20.10/32"}}],
    "networkPolicy.destinations": [{"cidr": "10.1.0.0/16", "ports": [9000]}],
    "networkPolicy.allowMetadata": True,
    "networkPolicy.scrapers": [{"namespaceSelector": {}}],
    "settings.progressInterval": 11,
    "settings.resyncInterval": 601,
    "settings.checkpointRetentionSeconds": 0,
    "settings.workers": 5,
    "settings.logLevel": "debug",
    "settings.logFormat": "json",
    "metrics.port": 9100,
    "metrics.maxJobs": 10,
    "metrics.labels": {"release": "prometheus"},
    "metrics.interval": 15,
    "metrics.serviceMonitor.enabled": True,
    "metrics.podMonitor.enabled": True,
    "metrics.prometheusRule.enabled": True,
    "metrics.grafanaDashboard.enabled": True,
    "metrics.grafanaDashboard.labels.grafana_dashboard": "yes",
    "crds.enabled": False,
    "rbac.userRoles": False,
    "rbac.aggregateToDefaultRoles": False,
    "kueue.enabled": True,
    "resources.requests.cpu": "1",
    "resources.requests.memory": "1Gi",
    "resources.limits.memory": "1Gi",
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "priorityClassName": "infrastructure",
    "affinity": {"nodeAffinity": {}},
}
# Other values without which a value has no effect.
REQUIRED_VALUES: dict[str, dict[str, Any]] = {
    "metrics.labels": {"metrics": {"serviceMonitor": {"enabled": True}}},
    "metrics.interval": {"metrics": {"podMonitor": {"enabled": True}}},
    "metrics.grafanaDashboard.labels.grafana_dashboard": {"metrics": {"grafanaDashboard": {"enabled": True}}},
    "networkPolicy.enabled": {"watchNamespaces": ["team-a"]},
    **{
        f"networkPolicy.{name}": {"watchNamespaces": ["team-a"], "networkPolicy": {"enabled": True}}
        for name in ("dns", "destinations", "allowMetadata", "scrapers")
    },
    "networkPolicy.namespaces": {"watchNamespaces": ["team-b"], "networkPolicy": {"enabled": True}},
}
WRONG_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "misspelled at the root": ({"replica": 2}, "replica"),
    "misspelled below": ({"settings": {"progressIntervall": 3}}, "progressIntervall"),
    "image with a space": ({"image": "finetune operator"}, "image"),
    "empty image": ({"image": ""}, "image"),
    "image split in three": ({"image": {"repository": "x", "tag": "y"}}, "image"),
    "trainer image not a string": ({"trainer": {"image": 1}}, "trainer"),
    "pull policy in lower case": ({"imagePullPolicy": "always"}, "imagePullPolicy"),
    "pull secret as a string": ({"imagePullSecrets": ["registry"]}, "imagePullSecrets"),
    "namespaces as a string": ({"watchNamespaces": "team-a"}, "watchNamespaces"),
    "the same namespace twice": ({"watchNamespaces": ["team-a", "team-a"]}, "watchNamespaces"),
    "no namespace's name": ({"watchNamespaces": ["Team_A"]}, "watchNamespaces"),
    "interval of zero": ({"settings": {"progressInterval": 0}}, "progressInterval"),
    "interval as a duration": ({"settings": {"resyncInterval": "10m"}}, "resyncInterval"),
    "no workers": ({"settings": {"workers": 0}}, "workers"),
    "unknown log level": ({"settings": {"logLevel": "loud"}}, "logLevel"),
    "crds as a flag": ({"crds": True}, "crds"),
    "kueue as a flag": ({"kueue": True}, "kueue"),
    "claims in resources": ({"resources": {"claims": []}}, "claims"),
    "no replica": ({"replicas": 0}, "replicas"),
    "metrics on the port of health": ({"metrics": {"port": 8080}}, "port"),
    "misspelled bound": ({"bounds": {"allowedImage": ["a"]}}, "allowedImage"),
    "bound as a string": ({"bounds": {"allowedImages": "a"}}, "allowedImages"),
    "image of any registry": ({"bounds": {"allowedImages": ["registry*/a"]}}, "allowedImages"),
    "tracker of any host": ({"bounds": {"allowedTrackers": ["https://mlflow.example*"]}}, "allowedTrackers"),
    "endpoint of any host": ({"bounds": {"allowedStorageEndpoints": ["https://s3.example*"]}}, "allowedStorage"),
    "less than no GPUs": ({"bounds": {"maxGPUs": -1}}, "maxGPUs"),
    "misspelled default": ({"defaults": {"storage": {"endpoints": "x"}}}, "endpoints"),
    "policy without ports": ({"networkPolicy": {"destinations": [{"cidr": "10.0.0.0/8"}]}}, "ports"),
    "policy to metadata": (
        {"networkPolicy": {"destinations": [{"cidr": "169.254.169.254/32", "ports": [80]}]}},
        "cidr",
    ),
    "node selector with a number": ({"nodeSelector": {"disk": 1}}, "disk"),
}
UMBRELLA_VALUES: dict[str, dict[str, Any]] = {
    "global of an umbrella chart": {"global": {"imageRegistry": "x"}},
    "condition of an umbrella chart": {"enabled": True},
}


def iter_value_paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all values; empty maps are values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from iter_value_paths(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def nest_value(path: str, value: object) -> dict[str, Any]:
    """`a.b` and 1 become {a: {b: 1}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def merge_values(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Maps merged, all else replaced."""
    return {**base, **{key: merge_values(base.get(key, {}), value) if isinstance(value, Mapping) else value
                       for key, value in changes.items()}}  # fmt: skip


def load_default_values(chart: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((chart / "values.yaml").read_text()))


def test_values_every_path_has_other_value(chart: Path) -> None:
    assert set(iter_value_paths(load_default_values(chart))) == set(OTHER_VALUES)


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_values_changed_value_changes_rendered_objects(template: Template, path: str) -> None:
    required = REQUIRED_VALUES.get(path, {})
    changed = template(merge_values(required, nest_value(path, OTHER_VALUES[path])))
    assert changed.returncode == 0, changed.stderr
    assert changed.stdout != template(required).stdout


def test_templates_use_only_defined_values(chart: Path) -> None:
    text = "".join(file.read_text() for file in (chart / "templates").iterdir())
    paths = {path[:length] for path in iter_value_paths(load_default_values(chart)) for length in _prefix_lengths(path)}
    assert set(re.findall(r"\.Values\.([A-Za-z.]+)", text)) <= paths


def _prefix_lengths(path: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\.|$", path)]


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_values_schema_wrong_value_is_rejected(template: Template, name: str) -> None:
    values, field = WRONG_VALUES[name]
    result = template(values)
    assert result.returncode != 0
    assert field in result.stderr
    assert "don't meet the specifications of the schema" in result.stderr


@pytest.mark.parametrize("name", UMBRELLA_VALUES)
def test_values_schema_umbrella_chart_values_are_accepted(template: Template, name: str) -> None:
    assert template(UMBRELLA_VALUES[name]).stdout == template({}).stdout


def test_values_schema_has_same_keys_as_values(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(load_default_values(chart), schema)
    assert set(schema["properties"]) - {"global", "enabled"} == set(load_default_values(chart))
    for key in ("trainer", "bounds", "defaults", "networkPolicy", "settings", "metrics", "crds", "rbac"):
        assert set(schema["properties"][key]["properties"]) == set(load_default_values(chart)[key])


def test_values_file_is_short_and_commented(chart: Path) -> None:
    lines = (chart / "values.yaml").read_text().splitlines()
    assert len(lines) <= 190
    for number, line in enumerate(lines):
        if re.match(r" {0,2}[A-Za-z]+: +\S", line):
            assert lines[number - 1].strip().startswith("#"), line
