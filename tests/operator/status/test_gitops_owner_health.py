"""The health that kstatus, Argo CD and Flux report for a FineTuneSchedule and a FineTuneSweep."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
import yaml
from tests.operator.conftest import ComputeKstatus
from tests.support.operator.builders import Body
from tests.support.operator.gitops_tools import GITOPS, HEALTH_SCRIPTS, evaluate_argocd, evaluate_flux

from finetune_operator.api import API_VERSION
from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.api.sweep import SWEEP_KIND
from finetune_operator.status.run_state import StateKind

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "gitops.md"
TRUTHS = ("True", "False", "Unknown", None)
SCHEDULE_CONDITIONS = ("Stalled", "Reconciling", "Suspended", "UpToDate", "Promoted")
# The health of a sweep in kstatus, Argo CD and Flux. Its conditions have the layout of a FineTuneJob's.
SWEEP_HEALTH = {
    StateKind.WAITING: ("InProgress", "Progressing", "InProgress"),
    StateKind.STARTING: ("Current", "Progressing", "InProgress"),
    StateKind.RUNNING: ("Current", "Progressing", "InProgress"),
    StateKind.FINISHING: ("Current", "Progressing", "InProgress"),
    StateKind.SUSPENDED: ("Current", "Suspended", "Current"),
    StateKind.CANCELLED: ("Current", "Suspended", "Failed"),
    StateKind.COMPLETE: ("Current", "Healthy", "Current"),
    StateKind.FAILED: ("Failed", "Degraded", "Failed"),
}


def _build_owner(kind: str, conditions: dict[str, str], observed_generation: int = 1) -> Body:
    """Return an object of generation 1 with these conditions."""
    listed = [
        {"type": name, "status": truth, "reason": f"{name}Reason", "message": f"why {name}"}
        for name, truth in conditions.items()
    ]
    status = {"observedGeneration": observed_generation, "conditions": listed}
    meta = {"name": "bot", "namespace": "team", "generation": 1}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": meta, "spec": {}, "status": status}


def _build_schedules() -> list[tuple[dict[str, str], Body]]:
    """Return all combinations of the conditions that decide, and the schedule with them."""
    combinations = [
        {name: truth for name, truth in zip(SCHEDULE_CONDITIONS, truths, strict=True) if truth}
        for truths in product(TRUTHS, TRUTHS, TRUTHS, ("True", "False"), ("True", "False", "Unknown"))
    ]
    return [(conditions, _build_owner(SCHEDULE_KIND, conditions)) for conditions in combinations]


def _decide_schedule_health(conditions: dict[str, str]) -> tuple[str, str, str]:
    """Return the health in kstatus and Argo CD, and the condition whose message Argo CD shows."""
    if conditions.get("Stalled") == "True":
        return "Failed", "Degraded", "Stalled"
    if conditions.get("Reconciling") == "True":
        return "InProgress", "Progressing", "Reconciling"
    if conditions.get("Suspended") == "True":
        return "Current", "Suspended", "Suspended"
    return "Current", "Healthy", "Promoted"


@pytest.mark.cluster
def test_argocd_health_of_schedule_follows_conditions() -> None:
    schedules = _build_schedules()
    results = evaluate_argocd(*(body for _, body in schedules))
    for (conditions, _), result in zip(schedules, results, strict=True):
        _, status, shown = _decide_schedule_health(conditions)
        assert result == {"status": status, "message": f"{shown}Reason: why {shown}"}, conditions


@pytest.mark.cluster
def test_kstatus_health_of_schedule_follows_conditions(kstatus: ComputeKstatus) -> None:
    schedules = [
        (conditions, body)
        for conditions, body in _build_schedules()
        if not conditions.get("Stalled") == conditions.get("Reconciling") == "True"  # never set together
    ]
    results = kstatus(*(body for _, body in schedules))
    for (conditions, _), result in zip(schedules, results, strict=True):
        assert result["status"] == _decide_schedule_health(conditions)[0], conditions


@pytest.mark.cluster
@pytest.mark.parametrize("kind", [SCHEDULE_KIND, SWEEP_KIND])
def test_gitops_health_of_unreconciled_owner_is_progressing(kstatus: ComputeKstatus, kind: str) -> None:
    edited = _build_owner(kind, {"Stalled": "True", "Complete": "True", "Failed": "True"}, observed_generation=0)
    bodies = [_build_owner(kind, {}, observed_generation=0), edited]
    assert {result["status"] for result in evaluate_argocd(*bodies, {**bodies[0], "status": None})} == {"Progressing"}
    assert {result["status"] for result in kstatus(*bodies)} == {"InProgress"}


@pytest.mark.cluster
@pytest.mark.parametrize("kind", StateKind)
def test_gitops_health_of_sweep_follows_state(kstatus: ComputeKstatus, kind: StateKind) -> None:
    _, conditions = kind.value
    body = _build_owner(SWEEP_KIND, {condition: str(is_true) for condition, is_true in conditions.items()})
    (result,) = evaluate_argocd(body)
    assert (kstatus(body)[0]["status"], result["status"], evaluate_flux(body)) == SWEEP_HEALTH[kind]
    headline = body["status"]["conditions"][0]
    assert result["message"] == f"{headline['reason']}: {headline['message']}"


def test_flux_kustomization_has_no_check_of_schedules() -> None:
    checks = yaml.safe_load((GITOPS / "flux" / "wait-for-the-end.yaml").read_text())["spec"]["healthCheckExprs"]
    assert SCHEDULE_KIND not in {check["kind"] for check in checks}  # kstatus decides


def test_gitops_guide_links_every_health_script() -> None:
    linked = set(re.findall(r"\(\.\./\.\./manifests/gitops/argocd/([\w-]+\.lua)\)", GUIDE.read_text()))
    assert linked == {script.name for script in HEALTH_SCRIPTS.values()}
