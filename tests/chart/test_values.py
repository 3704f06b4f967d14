"""Values: each is used, each is in the schema, wrong ones are refused before anything is installed."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.support.chart.deployment_environment import read_environment
from tests.support.chart.other_values import (
    OTHER_VALUES,
    REQUIRED_VALUES,
    iter_schema_leaves,
    merge_other_values,
    merge_values,
    nest_value,
)

Manifest = dict[str, Any]
Template = Callable[..., subprocess.CompletedProcess[str]]

WRONG_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "misspelled at the root": ({"replica": 2}, "replica"),
    "misspelled below": ({"settings": {"progressIntervall": 3}}, "progressIntervall"),
    "image with a space": ({"image": "finetune operator"}, "image"),
    "empty image": ({"image": ""}, "image"),
    "image with an unknown part": ({"image": {"name": "x"}}, "image"),
    "image with a tag in its repository": ({"image": {"repository": "x:1.0"}}, "repository"),
    "tag as a number": ({"image": {"tag": 1.10}}, "tag"),
    "digest of another algorithm": ({"trainer": {"image": {"digest": "md5:0"}}}, "digest"),
    "label with a number": ({"commonLabels": {"cost-center": 123}}, "cost-center"),
    "environment variable with a number": ({"extraEnv": [{"name": "A", "value": 1}]}, "extraEnv"),
    "environment as a map": ({"extraEnv": {"A": "1"}}, "extraEnv"),
    "fullname that is too long": ({"fullnameOverride": "a" * 54}, "fullnameOverride"),
    "runbook without a scheme": ({"metrics": {"prometheusRule": {"runbookURL": "docs"}}}, "runbookURL"),
    "operator's policy without an API server": ({"operatorNetworkPolicy": {"apiServer": []}}, "apiServer"),
    "values of a version without serviceAccount": ({"serviceAccount": None}, "serviceAccount"),
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
    "judge of any host": ({"bounds": {"allowedGraderEndpoints": ["https://judge.example*"]}}, "allowedGrader"),
    "endpoint of any host": ({"bounds": {"allowedStorageEndpoints": ["https://s3.example*"]}}, "allowedStorage"),
    "less than no GPUs": ({"bounds": {"maxGPUs": -1}}, "maxGPUs"),
    "misspelled default": ({"defaults": {"storage": {"endpoints": "x"}}}, "endpoints"),
    "network of the host in a profile": ({"profiles": {"a": {"podSpec": {"hostNetwork": True}}}}, "hostNetwork"),
    "privileges in a profile": ({"profiles": {"a": {"container": {"securityContext": {}}}}}, "securityContext"),
    "labels that the API server refuses": ({"commonLabels": {"team": "a b"}}, "commonLabels"),
    "key of a label that it refuses": ({"profiles": {"a": {"podLabels": {"a b": "c"}}}}, "podLabels"),
    "no name of a variable": ({"profiles": {"a": {"container": {"env": [{"name": "A-B"}]}}}}, "env/0/name"),
    "capability of the host": ({"profiles": {"a": {"container": {"addCapabilities": ["ALL"]}}}}, "addCapabilities"),
    "Secret in a profile": (
        {"profiles": {"a": {"container": {"env": [{"name": "A", "valueFrom": {}}]}}}},
        "valueFrom",
    ),
    "quantity as a number": ({"defaults": {"resources": {"requests": {"cpu": 4}}}}, "cpu"),
    "policy without ports": ({"networkPolicy": {"destinations": [{"cidr": "10.0.0.0/8"}]}}, "ports"),
    "policy to metadata": (
        {"networkPolicy": {"destinations": [{"cidr": "169.254.169.254/32", "ports": [80]}]}},
        "cidr",
    ),
    "node selector with a number": ({"nodeSelector": {"disk": 1}}, "disk"),
}
# Values of which null is as good as the default, an empty value, or the default of Kubernetes.
NULLABLE_VALUES = {
    "global", "global.imageRegistry", "imagePullSecrets", "replicas", "watchNamespaceSelector", "installationId",
    "defaultProfile", "operatorNetworkPolicy.enabled", "operatorNetworkPolicy.scrapers",
    "settings.checkpointRetentionSeconds", "settings.leaseName",
    "metrics.labels", "metrics.skipCRDCheck", "metrics.serviceMonitor.enabled", "metrics.podMonitor.enabled",
    "metrics.prometheusRule.enabled", "metrics.prometheusRule.runbookURL", "metrics.grafanaDashboard.enabled",
    "metrics.grafanaDashboard.labels", "metrics.grafanaDashboard.labels.grafana_dashboard", "rbac.userRoles",
    "kueue.enabled", "nameOverride", "fullnameOverride",
    "commonLabels", "serviceAccount.name", "serviceAccount.annotations", "deploymentAnnotations", "podLabels",
    "podAnnotations", "extraEnv", "nodeSelector", "tolerations", "priorityClassName", "affinity",
    "topologySpreadConstraints", "terminationGracePeriodSeconds", "revisionHistoryLimit",
}  # fmt: skip
NULLABLE_BLOCKS = ("bounds", "defaults", "networkPolicy", "podSecurityContext", "securityContext", "resources")
UMBRELLA_VALUES: dict[str, dict[str, Any]] = {
    "global of an umbrella chart": {"global": {"storageClass": "x"}},
    "no global": {"global": None},
    "condition of an umbrella chart": {"enabled": True},
}


def load_schema(chart: Path) -> dict[str, Any]:
    return dict(json.loads((chart / "values.schema.json").read_text()))


def load_default_values(chart: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((chart / "values.yaml").read_text()))


def test_values_every_leaf_of_schema_has_other_value(chart: Path) -> None:
    schema = load_schema(chart)
    assert set(iter_schema_leaves(schema, schema)) - {"enabled"} == set(OTHER_VALUES)


@pytest.mark.parametrize("path", [path for path in OTHER_VALUES if path != "metrics.skipCRDCheck"])
def test_values_changed_value_changes_rendered_objects(template: Template, path: str) -> None:
    required = REQUIRED_VALUES.get(path, {})
    changed = template(merge_values(required, nest_value(path, OTHER_VALUES[path])))
    assert changed.returncode == 0, changed.stderr
    assert changed.stdout != template(required).stdout


def test_values_all_other_values_are_rendered_together(render: Callable[..., list[Manifest]]) -> None:
    objects = render(merge_other_values())
    kinds = {manifest["kind"] for manifest in objects}
    assert {"NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "PrometheusRule", "ServiceMonitor"} <= kinds
    labels = [manifest["metadata"]["labels"] for manifest in objects]
    assert all(OTHER_VALUES["commonLabels"].items() <= own.items() for own in labels)


def test_templates_use_only_defined_values(chart: Path) -> None:
    text = "".join(file.read_text() for file in (chart / "templates").rglob("*.*"))
    schema = load_schema(chart)
    paths = {path[:length] for path in iter_schema_leaves(schema, schema) for length in _prefix_lengths(path)}
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


def test_values_null_is_accepted_or_refused_by_schema(chart: Path, render: Callable[..., list[Manifest]]) -> None:
    """A key whose lines below are all comments is null, for which Helm removes the default of the chart."""
    validator = jsonschema.Draft7Validator(load_schema(chart))
    values = load_default_values(chart)
    nullable = {path for path in _iter_paths(values) if validator.is_valid(_remove_value(values, path))}
    assert {path for path in nullable if path.partition(".")[0] not in NULLABLE_BLOCKS} == NULLABLE_VALUES
    nulls: dict[str, Any] = {}
    for path in sorted(nullable, reverse=True):  # a block after what it contains
        nulls = merge_values(nulls, nest_value(path, None))
    objects = render(nulls)
    (deployment,) = (manifest for manifest in objects if manifest["kind"] == "Deployment")
    settings = read_environment(deployment)
    assert {name: value for name, value in settings.items() if value is None} == {
        "FINETUNE_OPERATOR_WATCH_NAMESPACE_SELECTOR": None
    }
    assert "CustomResourceDefinition" in {manifest["kind"] for manifest in objects}


def _iter_paths(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _iter_paths(value, f"{prefix}{key}.")


def _remove_value(values: dict[str, Any], path: str) -> dict[str, Any]:
    key, _, rest = path.partition(".")
    removed = {name: value for name, value in values.items() if name != key}
    return {**removed, key: _remove_value(values[key], rest)} if rest else removed


@pytest.mark.parametrize("name", UMBRELLA_VALUES)
def test_values_schema_umbrella_chart_values_are_accepted(template: Template, name: str) -> None:
    assert template(UMBRELLA_VALUES[name]).stdout == template({}).stdout


def test_values_schema_has_same_keys_as_values(chart: Path) -> None:
    schema = load_schema(chart)
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(load_default_values(chart), schema)
    assert set(schema["properties"]) - {"enabled", "imagePullPolicy"} == set(load_default_values(chart))
    for key in ("bounds", "defaults", "networkPolicy", "settings", "metrics", "crds", "rbac", "serviceAccount"):
        assert set(schema["properties"][key]["properties"]) == set(load_default_values(chart)[key])


def test_values_labels_of_chart_are_not_replaced(template: Template) -> None:
    result = template({"podLabels": {"app.kubernetes.io/name": "other"}})
    assert "podLabels must not contain app.kubernetes.io/name" in result.stderr
    result = template({"commonLabels": {"helm.sh/chart": "other"}})
    assert "commonLabels must not contain helm.sh/chart" in result.stderr


def test_values_extra_env_setting_of_operator_is_rejected(template: Template) -> None:
    result = template({"extraEnv": [{"name": "FINETUNE_OPERATOR_WORKERS", "value": "1"}]})
    assert "extraEnv must not contain FINETUNE_OPERATOR_WORKERS" in result.stderr


def test_values_no_service_account_needs_name(template: Template) -> None:
    assert "set serviceAccount.name" in template({"serviceAccount": {"create": False}}).stderr


def test_values_numeric_names_stay_strings(render: Callable[..., list[Manifest]]) -> None:
    """YAML reads an unquoted one as a number, which the API server refuses."""
    values = {"fullnameOverride": "true", "nameOverride": "321", "serviceAccount": {"name": "456"}}
    for manifest in render(values, "--namespace", "789", "--api-versions", "monitoring.coreos.com/v1"):
        metadata = manifest["metadata"]
        names = [metadata["name"], metadata.get("namespace", ""), *metadata.get("labels", {}).values()]
        assert all(isinstance(name, str) for name in names), manifest


def test_chart_lint_strict_passes(chart: Path, helm: str) -> None:
    result = subprocess.run([helm, "lint", "--strict", chart], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_values_file_is_short(chart: Path) -> None:
    assert len((chart / "values.yaml").read_text().splitlines()) <= 400
