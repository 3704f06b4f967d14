"""Dashboard and alerts ask for metrics that exist, in PromQL that parses; monitors find the ports."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from tests.support.operator.exposed_metrics import list_series_labels

from finetune_trainer.contract import Progress, Stage
from finetune_trainer.telemetry.prometheus import render_metrics

Manifest = dict[str, Any]
ALL_ENABLED = {
    "metrics": {
        name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "prometheusRule", "grafanaDashboard")
    }
}
ROOT = Path(__file__).resolve().parents[2]
OBSERVABILITY = ROOT / "docs" / "operations" / "observability.md"


def parse_metric_names(query: str) -> set[str]:
    """Return the metrics that a PromQL query reads."""
    metric_names = set()

    def visit(expression: promql_parser.Expr) -> bool:
        if isinstance(expression, promql_parser.VectorSelector):
            metric_names.add(str(expression.name))
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return metric_names


def load_dashboard() -> dict[str, Any]:
    return dict(json.loads((ROOT / "charts/finetune-operator/dashboard.json").read_text()))


PANELS = {panel["title"]: panel for panel in load_dashboard()["panels"] if panel["type"] != "row"}
ALERTS = {
    alert["alert"]: alert for alert in yaml.safe_load((ROOT / "charts/finetune-operator/alerts.yaml").read_text())
}


@pytest.mark.parametrize("title", PANELS)
def test_dashboard_panel_uses_exposed_metrics(title: str) -> None:
    for target in PANELS[title]["targets"]:
        metric_names = parse_metric_names(target["expr"])
        assert metric_names
        assert metric_names <= set(list_series_labels()), target["expr"]
        labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert labels <= {label for name in metric_names for label in list_series_labels()[name]} | {"pod"}, (
            target
        )  # pod is the target's


def test_dashboard_variables_use_exposed_metrics() -> None:
    for variable in load_dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+)(?:{.*})?, (\w+)\)", variable["definition"])
            assert match
            assert match[2] in list_series_labels()[match[1]]


def test_dashboard_panels_do_not_overlap_and_have_unique_ids() -> None:
    panels = load_dashboard()["panels"]
    cells = [(x, y) for panel in panels for x, y in _occupied_cells(panel["gridPos"])]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in panels}) == len(panels)


def _occupied_cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    assert place["x"] + place["w"] <= 24
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_uses_exposed_metrics_and_has_runbook(alert: str) -> None:
    rule = ALERTS[alert]
    assert parse_metric_names(rule["expr"]) <= set(list_series_labels())
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description"} <= set(rule["annotations"])
    assert f"\n### {alert}\n" in OBSERVABILITY.read_text()


RUNBOOKS = {
    "default": ("", "https://finetune.dev/docs/operations/observability.md"),
    "own": ("https://docs.example/alerts", "https://docs.example/alerts"),
}


@pytest.mark.parametrize(("value", "page"), RUNBOOKS.values(), ids=RUNBOOKS)
def test_alert_runbook_url_names_heading_of_guide(render: Callable[..., list[Manifest]], value: str, page: str) -> None:
    objects = {
        manifest["kind"]: manifest
        for manifest in render({"metrics": {"prometheusRule": {"enabled": True, "runbookURL": value}}})
    }
    headings = re.findall(r"^#+ (.+)$", OBSERVABILITY.read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for rule in objects["PrometheusRule"]["spec"]["groups"][0]["rules"]:
        url, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert url == page
        assert anchor in anchors


MONITORS = ("serviceMonitor", "podMonitor", "prometheusRule")


@pytest.mark.parametrize("name", MONITORS)
def test_monitoring_without_prometheus_operator_is_rejected(
    template: Callable[..., subprocess.CompletedProcess[str]], name: str
) -> None:
    without_prometheus = ("--skip-tests",)
    result = template({"metrics": {name: {"enabled": True}}}, *without_prometheus)
    assert result.returncode != 0
    assert "the cluster does not serve monitoring.coreos.com/v1" in result.stderr
    assert "metrics.skipCRDCheck" in result.stderr
    result = template({"metrics": {name: {"enabled": True}, "skipCRDCheck": True}}, *without_prometheus)
    assert f"kind: {name[0].upper()}{name[1:]}" in result.stdout


def test_observability_guide_runbooks_match_alerts() -> None:
    section = OBSERVABILITY.read_text().split("\n## Alerts\n")[1].split("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == list(ALERTS)


def test_chart_default_monitoring_is_only_a_service(render: Callable[..., list[Manifest]]) -> None:
    kinds = {manifest["kind"] for manifest in render()}
    assert "Service" in kinds
    assert not {"ServiceMonitor", "PodMonitor", "PrometheusRule"} & kinds
    assert not [manifest for manifest in render() if "dashboard" in manifest["metadata"]["name"]]


def test_service_monitor_honors_labels_of_operator(render: Callable[..., list[Manifest]]) -> None:
    objects = {manifest["kind"]: manifest for manifest in render(ALL_ENABLED)}
    (endpoint,) = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint == {"port": "metrics", "interval": "30s", "honorLabels": True}
    selector = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= objects["Service"]["metadata"]["labels"].items()
    assert objects["Service"]["spec"]["selector"] == objects["Deployment"]["spec"]["selector"]["matchLabels"]
    (port,) = objects["Service"]["spec"]["ports"]
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert port["targetPort"] in {container_port["name"] for container_port in container["ports"]}


NAMESPACES = {"all": ([], {"any": True}), "some": (["team-a"], {"matchNames": ["team-a"]})}


@pytest.mark.parametrize(("watched", "selected"), NAMESPACES.values(), ids=NAMESPACES)
def test_pod_monitor_selects_watched_namespaces_and_leaders(
    render: Callable[..., list[Manifest]], watched: list[str], selected: Manifest
) -> None:
    objects = {manifest["kind"]: manifest for manifest in render({**ALL_ENABLED, "watchNamespaces": watched})}
    spec = objects["PodMonitor"]["spec"]
    assert spec["namespaceSelector"] == selected
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] == "progress"
    (keep_rule,) = [relabeling for relabeling in endpoint["relabelings"] if relabeling.get("action") == "keep"]
    indices = {"0": True, "": True, "1": False, "10": False}  # of a Job of one pod there is none
    assert {index: bool(re.fullmatch(keep_rule["regex"], index)) for index in indices} == indices
    assert keep_rule["sourceLabels"] == ["__meta_kubernetes_pod_label_batch_kubernetes_io_job_completion_index"]


def _is_kept(endpoint: Manifest, name: str) -> bool:
    (rule,) = endpoint["metricRelabelings"]
    assert (rule["sourceLabels"], rule["action"]) == (["__name__"], "keep")
    return re.fullmatch(rule["regex"], name) is not None


def test_pod_monitor_drops_foreign_metrics_and_limits_samples(render: Callable[..., list[Manifest]]) -> None:
    spec = next(manifest for manifest in render(ALL_ENABLED) if manifest["kind"] == "PodMonitor")["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    text = render_metrics(Progress(stage=Stage.TRAINING, last_update_time="2026-11-23T08:00:00Z")).decode()
    samples = [re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")]
    assert [name for name in samples if not _is_kept(endpoint, name)] == []
    assert [name for name in [*list_series_labels(), "up", "ALERTS"] if _is_kept(endpoint, name)] == []
    assert len(samples) < spec["sampleLimit"] / 2
    assert spec["sampleLimit"] < 1000
    assert spec["bodySizeLimit"] == "256KB"
    assert "honorLabels" not in endpoint


def test_chart_rules_and_dashboard_are_rendered_completely(render: Callable[..., list[Manifest]]) -> None:
    values = {"metrics": {**ALL_ENABLED["metrics"], "labels": {"release": "prometheus"}}}
    objects = {
        manifest["kind"]: manifest for manifest in render(values) if "profiles" not in manifest["metadata"]["name"]
    }
    (group,) = objects["PrometheusRule"]["spec"]["groups"]
    for rule in group["rules"]:
        assert rule["annotations"].pop("runbook_url")
    assert group["rules"] == list(ALERTS.values())
    (text,) = objects["ConfigMap"]["data"].values()
    assert json.loads(text) == load_dashboard()
    assert objects["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule"):
        assert objects[kind]["metadata"]["labels"]["release"] == "prometheus"
