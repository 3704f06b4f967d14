"""Trainer pods meet the Pod Security Standard `restricted` for every spec.

https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
The tests with a real API server run in namespaces that enforce it.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from tests.support.operator import spec_samples

from finetune_operator.api import FineTuneJob
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

Body = dict[str, Any]
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
HOST = {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}
SPECS: dict[str, Body] = {
    "minimal": {},
    "several nodes and GPUs": {"compute": {"nodes": 2, "gpusPerNode": 8}},
    "volume claim and credentials": {
        "model": {"uri": "pvc://models/x"},
        "storage": {"credentialsSecretRef": {"name": "s3"}},
    },
    "scratch with storage class": {"compute": {"scratch": {"size": "1Gi", "storageClassName": "fast"}}},
    "model cache": {"compute": {"modelCacheClaimName": "cache", "gpusPerNode": 2}},
    "own image": {"compute": {"image": "other:1", "serviceAccountName": "me"}},
    "annotations for the runtime": {
        "compute": {
            "podAnnotations": {
                "container.apparmor.security.beta.kubernetes.io/trainer": "unconfined",
                "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
                "io.kubernetes.cri-o.userns-mode": "auto",
            }
        }
    },
}


GUIDE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "model-cache.md"


def find_violations(template: Body) -> list[str]:
    """Return the violations of the standard in a pod template."""
    pod = template["spec"]
    found_violations = [f"host: {field}" for field in HOST & set(pod)]
    found_violations += [f"volume: {volume}" for volume in pod["volumes"] if not VOLUMES & set(volume)]
    found_violations += [
        f"annotation: {key}" for key in template["metadata"].get("annotations", {}) if "security" in key
    ]
    found_violations += _check_context(pod["securityContext"])
    for container in [*pod["containers"], *pod.get("initContainers", []), *pod.get("ephemeralContainers", [])]:
        container_context = container["securityContext"]
        found_violations += _check_context({**pod["securityContext"], **container_context})
        found_violations += ["escalation"] if container_context.get("allowPrivilegeEscalation") is not False else []
        found_violations += ["capabilities"] if container_context.get("capabilities") != {"drop": ["ALL"]} else []
        found_violations += (
            ["privileged"]
            if container_context.get("privileged") or container_context.get("procMount", "Default") != "Default"
            else []
        )
        found_violations += ["host port"] if any("hostPort" in port for port in container.get("ports", [])) else []
    return found_violations


def _check_context(context: Body) -> list[str]:
    checks = {
        "root": context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0,
        "seccomp": context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
        "AppArmor": context.get("appArmorProfile", {}).get("type", "RuntimeDefault") == "Unconfined",
        "SELinux": "seLinuxOptions" in context,
        "sysctls": "sysctls" in context,
    }
    return [name for name, is_wrong in checks.items() if is_wrong]


def _build_pod_template(build: type[Builders], spec: Body) -> Body:
    template: Body = build_job(FineTuneJob.model_validate(build.finetunejob(spec=spec)), Settings())["spec"]["template"]
    return template


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_pod_security_any_spec_is_restricted(build: type[Builders], spec: Body) -> None:
    assert find_violations(_build_pod_template(build, spec)) == []


def test_pod_security_full_spec_is_restricted(build: type[Builders]) -> None:
    job = FineTuneJob.model_validate({**build.finetunejob(), "spec": spec_samples.build_full_spec()})
    defaults = {"storage": {"credentialsSecretRef": {"name": "s3"}}, "scratchStorageClassName": "fast"}
    settings = Settings.model_validate({"defaults": defaults})
    assert find_violations(build_job(job, settings)["spec"]["template"]) == []


class ForbiddenChange(NamedTuple):
    path: tuple[str | int, ...]
    value: object
    violation: str


FORBIDDEN_CHANGES = {
    "host network": ForbiddenChange(("spec", "hostNetwork"), True, "host: hostNetwork"),
    "root": ForbiddenChange(("spec", "securityContext", "runAsUser"), 0, "root"),
    "no seccomp": ForbiddenChange(("spec", "securityContext", "seccompProfile"), {"type": "Unconfined"}, "seccomp"),
    "privileged": ForbiddenChange(("spec", "containers", 0, "securityContext", "privileged"), True, "privileged"),
    "capability": ForbiddenChange(
        ("spec", "containers", 0, "securityContext", "capabilities"),
        {"drop": ["ALL"], "add": ["SYS_ADMIN"]},
        "capabilities",
    ),
    "escalation": ForbiddenChange(
        ("spec", "containers", 0, "securityContext", "allowPrivilegeEscalation"), True, "escalation"
    ),
    "host path": ForbiddenChange(
        ("spec", "volumes", 0),
        {"name": "x", "hostPath": {"path": "/"}},
        "volume: {'name': 'x', 'hostPath': {'path': '/'}}",
    ),
    "host port": ForbiddenChange(("spec", "containers", 0, "ports", 0, "hostPort"), 80, "host port"),
}


@pytest.mark.parametrize("change", FORBIDDEN_CHANGES.values(), ids=FORBIDDEN_CHANGES)
def test_find_violations_forbidden_change_is_found(build: type[Builders], change: ForbiddenChange) -> None:
    template = copy.deepcopy(_build_pod_template(build, {}))
    node: Any = template
    for key in change.path[:-1]:
        node = node[key]
    node[change.path[-1]] = change.value
    assert change.violation in find_violations(template)


def test_model_cache_guide_command_meets_restricted() -> None:
    """Namespaces that enforce it would refuse the pod."""
    (overrides,) = re.findall(r"--overrides='(.*?)'", GUIDE.read_text(), re.DOTALL)
    assert find_violations({"metadata": {}, "spec": json.loads(overrides)["spec"]}) == []
