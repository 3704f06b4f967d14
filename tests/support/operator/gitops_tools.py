"""The health that Argo CD and Flux compute for an object, with the scripts and expressions of this repository."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import cel
import yaml
from tests.support.operator.builders import Body

from finetune_operator.api import API_VERSION
from local_cluster import tools

GITOPS = Path(__file__).resolve().parents[3] / "manifests" / "gitops"
HEALTH_SCRIPTS = {
    "FineTuneJob": GITOPS / "argocd" / "health.lua",
    "FineTuneSchedule": GITOPS / "argocd" / "finetuneschedule.lua",
    "FineTuneSweep": GITOPS / "argocd" / "finetunesweep.lua",
}


def evaluate_argocd(*objects: Body) -> list[dict[str, str]]:
    """Return the health of objects of one kind, with the interpreter of Argo CD."""
    (kind,) = {body["kind"] for body in objects}
    tools.ensure_built()
    lines = "\n".join(map(json.dumps, objects))
    command = [tools.find_program("argocd-health"), HEALTH_SCRIPTS[kind]]
    result = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def evaluate_flux(body: Body) -> str:
    """Evaluate as https://github.com/fluxcd/pkg/blob/main/runtime/cel/status_evaluator.go does."""
    checks = yaml.safe_load((GITOPS / "flux" / "wait-for-the-end.yaml").read_text())["spec"]["healthCheckExprs"]
    (check,) = (check for check in checks if (check["apiVersion"], check["kind"]) == (API_VERSION, body["kind"]))
    if body["status"].get("observedGeneration") not in (None, body["metadata"]["generation"]):
        return "InProgress"
    for field, status in {"inProgress": "InProgress", "failed": "Failed", "current": "Current"}.items():
        if field in check and cel.evaluate(check[field], body):
            return status
    return "InProgress"
