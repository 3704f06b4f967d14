"""What kstatus, Argo CD and Flux take a FineTuneJob for, in every state of the table that the guide shows."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import cel
import pytest
import yaml
from tests.operator.bodies import Body, Build
from tests.operator.conftest import Kstatus
from tests.operator.state_table import META, NOW, cases

from finetune_operator.api import API_VERSION, KIND, FineTuneJobStatus
from finetune_operator.status.job_status import next_status
from local_cluster import tools

ROOT = Path(__file__).resolve().parents[2]
GITOPS = ROOT / "manifests" / "gitops"
SCRIPT = GITOPS / "argocd" / "health.lua"
ASKED_LATER = {**Build.stored(), "status": {"observedGeneration": 0, "conditions": []}}


def _documented() -> dict[tuple[str, frozenset[str]], list[str]]:
    """The guide's table: phase and conditions → what kstatus, Argo CD and a waiting Flux take it for."""
    section = (ROOT / "docs" / "concepts" / "lifecycle.md").read_text().split("\n## States\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][2:]
    return {
        (row[1].strip(), frozenset(re.findall(r"`(\w+=\w+)`", row[2]))): [cell.strip() for cell in row[4:]]
        for row in rows
    }


def _states() -> list[tuple[str, Body, list[str]]]:
    """Every case of the table: name, FineTuneJob, and what the guide says of it."""
    documented = _documented()
    states = []
    for name, (seen, (phase, conditions), *_) in cases().items():
        status = next_status(META, FineTuneJobStatus(), seen, NOW).to_json()
        said = documented[phase, frozenset(f"{kind}={truth}" for kind, truth in conditions.items())]
        states.append((name, {**Build.stored(), "status": status}, said))
    return states


def _argocd(*objects: Body) -> list[dict[str, str]]:
    tools.ensure()
    lines = "\n".join(map(json.dumps, objects))
    command = [tools.program("argocd-health"), SCRIPT]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _flux(body: Body) -> str:
    """As https://github.com/fluxcd/pkg/blob/main/runtime/cel/status_evaluator.go does."""
    (check,) = yaml.safe_load((GITOPS / "flux" / "wait-for-the-end.yaml").read_text())["spec"]["healthCheckExprs"]
    assert (check["apiVersion"], check["kind"]) == (API_VERSION, KIND)
    if body["status"].get("observedGeneration") not in (None, body["metadata"]["generation"]):
        return "InProgress"
    for field, status in {"inProgress": "InProgress", "failed": "Failed", "current": "Current"}.items():
        if field in check and cel.evaluate(check[field], body):
            return status
    return "InProgress"


def test_the_guide_shows_every_state_once() -> None:
    found = {(phase, frozenset(f"{k}={v}" for k, v in truths.items())) for _, (phase, truths), *_ in cases().values()}
    assert found == set(_documented())


@pytest.mark.cluster
def test_each_state_is_what_kstatus_should_take_it_for(kstatus: Kstatus) -> None:
    states = _states()
    found = kstatus(*(body for _, body, _ in states))
    assert [each["status"] for each in found] == [said[0] for *_, said in states]


@pytest.mark.cluster
def test_each_state_is_what_argo_cd_should_take_it_for() -> None:
    states = _states()
    for (name, body, said), found in zip(states, _argocd(*(body for _, body, _ in states)), strict=True):
        condition = body["status"]["conditions"][0]
        assert found == {"status": said[1], "message": f"{condition['reason']}: {condition['message']}"}, name


@pytest.mark.parametrize(("name", "body", "said"), [pytest.param(*each, id=each[0]) for each in _states()])
def test_each_state_is_what_a_waiting_flux_should_take_it_for(name: str, body: Body, said: list[str]) -> None:
    assert _flux(body) == said[2], name


def _changed(body: Body) -> Body:
    return {**body, "metadata": {**body["metadata"], "generation": 2}}


@pytest.mark.cluster
def test_what_no_operator_has_looked_at_is_in_progress() -> None:
    bodies = [{**Build.stored(), "status": None}, ASKED_LATER, *(_changed(body) for _, body, _ in _states())]
    assert {each["status"] for each in _argocd(*bodies)} == {"Progressing"}
    assert {_flux(body) for body in bodies[1:]} == {"InProgress"}


@pytest.mark.cluster
def test_a_status_of_an_operator_that_counted_no_generations_holds() -> None:
    conditions: list[dict[str, Any]] = [{"type": "Complete", "status": "True", "reason": "Completed"}]
    (found,) = _argocd({**Build.stored(), "status": {"conditions": conditions}})
    assert found == {"status": "Healthy", "message": "Completed: "}


@pytest.mark.cluster
def test_a_condition_that_does_not_hold_says_nothing() -> None:
    conditions = [{"type": kind, "status": "False", "reason": "No"} for kind in ("Complete", "Failed", "Suspended")]
    body = {**Build.stored(), "status": {"conditions": conditions}}
    assert (_argocd(body)[0]["status"], _flux(body)) == ("Progressing", "InProgress")


def test_the_config_map_holds_the_script() -> None:
    data = yaml.safe_load((GITOPS / "argocd" / "argocd-cm.yaml").read_text())["data"]
    assert data == {"resource.customizations.health.finetune.dev_FineTuneJob": SCRIPT.read_text()}
