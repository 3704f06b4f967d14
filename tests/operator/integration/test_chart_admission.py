"""A real API server accepts all objects of the chart with strict field validation, and reports no warning."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.support.chart.other_values import OTHER_VALUES, merge_other_values
from tests.support.operator.api_server import ADMIN_TOKEN

from finetune_operator.codegen.__main__ import CHART
from local_cluster import tools

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

VARIANTS = {"default": {}, "all values": merge_other_values()}
CRD_LESS_GROUP = "monitoring.coreos.com/v1"
"""The API group of the Prometheus Operator, whose CRDs the API server of the tests does not have."""


def render_chart(namespace: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects and hooks of a release in that namespace. All other namespaces are replaced by it."""
    text = yaml.safe_dump(values).replace(OTHER_VALUES["watchNamespaces"][0], namespace)
    command = [tools.find_program("helm"), "template", "finetune-operator", CHART, "--namespace", namespace]
    options = ["--values", "-", "--api-versions", CRD_LESS_GROUP]
    result = subprocess.run([*command, *options], input=text, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    objects = [manifest for manifest in yaml.safe_load_all(result.stdout) if manifest]
    return [manifest for manifest in objects if manifest["apiVersion"] != CRD_LESS_GROUP]


def apply_in_dry_run(server: str, objects: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Validate objects as `kubectl apply --server-side` does, in the restricted namespace of the test."""
    connection = ["--server", server, "--token", ADMIN_TOKEN, "--insecure-skip-tls-verify"]
    options = ["--server-side", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-"]
    command = [tools.find_program("kubectl"), *connection, "apply", *options]
    return subprocess.run(command, input=yaml.safe_dump_all(objects), capture_output=True, text=True, check=False)


def install_in_dry_run(world: NamespaceHarness, *settings: str) -> subprocess.CompletedProcess[str]:
    """Run `helm install --dry-run=client`, which asks the API server for its versions and renders the notes."""
    connection = [
        "--kube-apiserver",
        world.proxy.target,
        "--kube-token",
        ADMIN_TOKEN,
        "--kube-insecure-skip-tls-verify",
    ]
    options = ["--dry-run=client", "--namespace", world.namespace]
    flags = [word for setting in settings for word in ("--set", setting)]
    command = [tools.find_program("helm"), "install", "finetune-operator", CHART, *options, *connection, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_chart_objects_are_accepted_in_restricted_namespace(world: NamespaceHarness, variant: str) -> None:
    objects = render_chart(world.namespace, VARIANTS[variant])
    result = apply_in_dry_run(world.proxy.target, objects)
    assert result.returncode == 0, result.stderr
    applied = result.stdout.splitlines()
    assert len(applied) == len(objects)
    assert "pod/" in result.stdout


async def test_chart_weakened_security_context_is_rejected_in_restricted_namespace(world: NamespaceHarness) -> None:
    objects = render_chart(world.namespace, {"securityContext": {"allowPrivilegeEscalation": True}})
    result = apply_in_dry_run(world.proxy.target, objects)
    assert result.returncode != 0
    assert "allowPrivilegeEscalation != false" in result.stderr


async def test_chart_monitors_without_prometheus_operator_are_rejected(world: NamespaceHarness) -> None:
    result = install_in_dry_run(world, "metrics.podMonitor.enabled=true")
    assert result.returncode != 0
    assert "the cluster does not serve monitoring.coreos.com/v1" in result.stderr
