"""The health that kstatus, Argo CD and Flux report for a FineTuneJob in each state that the guide documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.operator.conftest import ComputeKstatus
from tests.support.operator.builders import Body, Builders
from tests.support.operator.gitops_tools import GITOPS, HEALTH_SCRIPTS, evaluate_argocd, evaluate_flux
from tests.support.operator.run_state_table import META, NOW, build_state_cases

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.status.job_status import compute_status

ROOT = Path(__file__).resolve().parents[3]
NOT_YET_OBSERVED = {**Builders.finetunejob(), "status": {"observedGeneration": 0, "conditions": []}}


def _read_documented_health() -> dict[tuple[str, frozenset[str]], list[str]]:
    """Return the guide's table: the health in kstatus, Argo CD and Flux by phase and conditions."""
    section = (ROOT / "docs" / "concepts" / "lifecycle.md").read_text().split("\n## States\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][2:]
    return {
        (row[1].strip(), frozenset(re.findall(r"`(\w+=\w+)`", row[2]))): [cell.strip() for cell in row[4:]]
        for row in rows
    }


def _build_states() -> list[tuple[str, Body, list[str]]]:
    """Return the name, the FineTuneJob and the documented health of each state."""
    documented = _read_documented_health()
    states = []
    for name, case in build_state_cases().items():
        status = compute_status(META, FineTuneJobStatus(), case.observed, NOW).to_json()
        phase, conditions = case.phase_and_conditions
        documented_health = documented[phase, frozenset(f"{kind}={truth}" for kind, truth in conditions.items())]
        states.append((name, {**Builders.finetunejob(), "status": status}, documented_health))
    return states


def test_lifecycle_guide_shows_every_state_once() -> None:
    phases = [case.phase_and_conditions for case in build_state_cases().values()]
    states = {
        (phase, frozenset(f"{kind}={truth}" for kind, truth in conditions.items())) for phase, conditions in phases
    }
    assert states == set(_read_documented_health())


@pytest.mark.cluster
def test_kstatus_health_of_each_state_matches_guide(kstatus: ComputeKstatus) -> None:
    states = _build_states()
    results = kstatus(*(body for _, body, _ in states))
    assert [result["status"] for result in results] == [expected[0] for *_, expected in states]


@pytest.mark.cluster
def test_argocd_health_of_each_state_matches_guide() -> None:
    states = _build_states()
    for (name, body, expected), result in zip(states, evaluate_argocd(*(body for _, body, _ in states)), strict=True):
        condition = body["status"]["conditions"][0]
        assert result == {"status": expected[1], "message": f"{condition['reason']}: {condition['message']}"}, name


@pytest.mark.parametrize(("name", "body", "expected"), [pytest.param(*state, id=state[0]) for state in _build_states()])
def test_flux_health_of_each_state_matches_guide(name: str, body: Body, expected: list[str]) -> None:
    assert evaluate_flux(body) == expected[2], name


def _bump_generation(body: Body) -> Body:
    return {**body, "metadata": {**body["metadata"], "generation": 2}}


@pytest.mark.cluster
def test_gitops_health_unobserved_generation_is_progressing() -> None:
    bodies = [
        {**Builders.finetunejob(), "status": None},
        NOT_YET_OBSERVED,
        *(_bump_generation(body) for _, body, _ in _build_states()),
    ]
    assert {result["status"] for result in evaluate_argocd(*bodies)} == {"Progressing"}
    assert {evaluate_flux(body) for body in bodies[1:]} == {"InProgress"}


@pytest.mark.cluster
def test_argocd_health_without_observed_generation_uses_conditions() -> None:
    conditions: list[dict[str, Any]] = [{"type": "Complete", "status": "True", "reason": "Completed"}]
    (result,) = evaluate_argocd({**Builders.finetunejob(), "status": {"conditions": conditions}})
    assert result == {"status": "Healthy", "message": "Completed: "}


@pytest.mark.cluster
def test_gitops_health_false_conditions_are_progressing() -> None:
    conditions = [{"type": kind, "status": "False", "reason": "No"} for kind in ("Complete", "Failed", "Suspended")]
    body = {**Builders.finetunejob(), "status": {"conditions": conditions}}
    assert (evaluate_argocd(body)[0]["status"], evaluate_flux(body)) == ("Progressing", "InProgress")


def test_argocd_config_map_holds_health_scripts() -> None:
    data = yaml.safe_load((GITOPS / "argocd" / "argocd-cm.yaml").read_text())["data"]
    assert data == {
        f"resource.customizations.health.finetune.dev_{kind}": script.read_text()
        for kind, script in HEALTH_SCRIPTS.items()
    }
