"""Dashboard and alerts ask for metrics that exist, in PromQL that parses; monitors find the ports."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from tests.operator.exposed import exposed

from finetune_trainer.contract import Progress, Stage
from finetune_trainer.telemetry.prometheus import exposition

Manifest = dict[str, Any]
ALL = {
    "metrics": {
        name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "prometheusRule", "grafanaDashboard")
    }
}
ROOT = Path(__file__).resolve().parents[2]
OBSERVABILITY = ROOT / "docs" / "operations" / "observability.md"


def asked_for(query: str) -> set[str]:
    """The metrics that a PromQL query asks for."""
    found = set()

    def visit(expression: promql_parser.Expr) -> bool:
        if isinstance(expression, promql_parser.VectorSelector):
            found.add(str(expression.name))
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def dashboard() -> dict[str, Any]:
    return dict(json.loads((ROOT / "charts/finetune-operator/dashboard.json").read_text()))


PANELS = {each["title"]: each for each in dashboard()["panels"] if each["type"] != "row"}
ALERTS = {each["alert"]: each for each in yaml.safe_load((ROOT / "charts/finetune-operator/alerts.yaml").read_text())}


@pytest.mark.parametrize("title", PANELS)
def test_panels_show_metrics_that_exist(title: str) -> None:
    for target in PANELS[title]["targets"]:
        asked = asked_for(target["expr"])
        assert asked
        assert asked <= set(exposed()), target["expr"]
        labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert labels <= {label for name in asked for label in exposed()[name]} | {"pod"}, target  # pod is the target's


def test_variables_are_filled_from_metrics_that_exist() -> None:
    for each in dashboard()["templating"]["list"]:
        if each["type"] == "query":
            found = re.fullmatch(r"label_values\((\w+)(?:{.*})?, (\w+)\)", each["definition"])
            assert found
            assert found[2] in exposed()[found[1]]


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = dashboard()["panels"]
    cells = [(x, y) for each in panels for x, y in _cells(each["gridPos"])]
    assert len(cells) == len(set(cells))
    assert len({each["id"] for each in panels}) == len(panels)


def _cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    assert place["x"] + place["w"] <= 24
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


@pytest.mark.parametrize("alert", ALERTS)
def test_alerts_look_at_metrics_that_exist_and_say_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert asked_for(rule["expr"]) <= set(exposed())
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description"} <= set(rule["annotations"])
    assert f"\n### {alert}\n" in OBSERVABILITY.read_text()


def test_no_runbook_without_its_alert() -> None:
    section = OBSERVABILITY.read_text().split("\n## Alerts\n")[1].split("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == list(ALERTS)


def test_nothing_but_a_service_by_default(render: Callable[..., list[Manifest]]) -> None:
    kinds = {each["kind"] for each in render()}
    assert "Service" in kinds
    assert not {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"} & kinds


def test_the_operators_metrics_keep_their_own_namespace(render: Callable[..., list[Manifest]]) -> None:
    objects = {each["kind"]: each for each in render(ALL)}
    (endpoint,) = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint == {"port": "metrics", "interval": "30s", "honorLabels": True}
    selector = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= objects["Service"]["metadata"]["labels"].items()
    assert objects["Service"]["spec"]["selector"] == objects["Deployment"]["spec"]["selector"]["matchLabels"]
    (port,) = objects["Service"]["spec"]["ports"]
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert port["targetPort"] in {each["name"] for each in container["ports"]}


NAMESPACES = {"all": ([], {"any": True}), "some": (["team-a"], {"matchNames": ["team-a"]})}


@pytest.mark.parametrize(("watched", "selected"), NAMESPACES.values(), ids=NAMESPACES)
def test_trainers_are_scraped_where_they_are(
    render: Callable[..., list[Manifest]], watched: list[str], selected: Manifest
) -> None:
    objects = {each["kind"]: each for each in render({**ALL, "watchNamespaces": watched})}
    spec = objects["PodMonitor"]["spec"]
    assert spec["namespaceSelector"] == selected
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] == "progress"
    (kept,) = [each for each in endpoint["relabelings"] if each.get("action") == "keep"]
    indices = {"0": True, "": True, "1": False, "10": False}  # of a Job of one pod there is none
    assert {each: bool(re.fullmatch(kept["regex"], each)) for each in indices} == indices
    assert kept["sourceLabels"] == ["__meta_kubernetes_pod_label_batch_kubernetes_io_job_completion_index"]


def _kept(endpoint: Manifest, name: str) -> bool:
    (rule,) = endpoint["metricRelabelings"]
    assert (rule["sourceLabels"], rule["action"]) == (["__name__"], "keep")
    return re.fullmatch(rule["regex"], name) is not None


def test_a_pod_can_neither_speak_as_the_operator_nor_flood(render: Callable[..., list[Manifest]]) -> None:
    spec = next(each for each in render(ALL) if each["kind"] == "PodMonitor")["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    text = exposition(Progress(stage=Stage.TRAINING, last_update_time="2026-11-23T08:00:00Z")).decode()
    samples = [re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")]
    assert [name for name in samples if not _kept(endpoint, name)] == []
    assert [name for name in [*exposed(), "up", "ALERTS"] if _kept(endpoint, name)] == []
    assert len(samples) < spec["sampleLimit"] / 2
    assert spec["sampleLimit"] < 1000
    assert spec["bodySizeLimit"] == "256KB"
    assert "honorLabels" not in endpoint


def test_rules_and_dashboard_arrive_whole(render: Callable[..., list[Manifest]]) -> None:
    values = {"metrics": {**ALL["metrics"], "labels": {"release": "prometheus"}}}
    objects = {each["kind"]: each for each in render(values)}
    (group,) = objects["PrometheusRule"]["spec"]["groups"]
    assert group["rules"] == list(ALERTS.values())
    (text,) = objects["ConfigMap"]["data"].values()
    assert json.loads(text) == dashboard()
    assert objects["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule"):
        assert objects[kind]["metadata"]["labels"]["release"] == "prometheus"
