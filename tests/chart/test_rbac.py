"""The permissions of the operator are repeated here, so that new ones are added deliberately."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.chart.deployment_environment import read_environment
from tests.support.operator.namespace_harness import OPERATOR_RULES, build_lease_rules

Manifest = dict[str, Any]

PLURALS = ("finetunejobs", "finetuneschedules", "finetunesweeps")
OPERATOR_RIGHTS = {
    ("finetune.dev", "finetunejobs"): {"list", "watch", "create", "patch", "delete"},
    ("finetune.dev", "finetuneschedules"): {"list", "watch"},
    ("finetune.dev", "finetunesweeps"): {"list", "watch"},
    **{("finetune.dev", f"{plural}/status"): {"patch"} for plural in PLURALS},
    **{("finetune.dev", f"{plural}/finalizers"): {"update"} for plural in PLURALS},
    ("batch", "jobs"): {"get", "list", "watch", "create", "patch", "delete"},
    ("", "pods"): {"list", "watch", "delete"},
    ("", "services"): {"get", "create"},
    ("", "events"): {"list", "create"},
}
_STATUS_RIGHTS = {("finetune.dev", f"{plural}/status"): {"get"} for plural in PLURALS}
TENANT_RIGHTS = {
    "edit": _STATUS_RIGHTS | {
        ("finetune.dev", plural): {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
        for plural in PLURALS
    },
    "view": _STATUS_RIGHTS | {
        ("finetune.dev", plural): {"get", "list", "watch"} for plural in PLURALS
    },
}  # fmt: skip
LEASE = ("finetune-system", "finetune-operator-lease")
FORBIDDEN_RESOURCES = ("secrets", "configmaps", "nodes", "pods/exec", "pods/attach", "pods/log", "serviceaccounts", "*")
VARIANTS = {"whole cluster": {}, "two namespaces": {"watchNamespaces": ["team-a", "team-b"]}}


def collect_permissions(role: Manifest) -> dict[tuple[str, str], set[str]]:
    """(group, resource) → verbs."""
    permissions: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        assert set(rule) - {"resourceNames"} == {"apiGroups", "resources", "verbs"}, rule
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                permissions.setdefault((group, resource), set()).update(rule["verbs"])
    return permissions


def filter_by_kind(objects: list[Manifest], kind: str) -> dict[tuple[str, str], Manifest]:
    """(namespace, name) → object."""
    return {(manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]): manifest for manifest in objects
            if manifest["kind"] == kind}  # fmt: skip


def test_rbac_namespaces_by_label_may_list_namespaces(
    render: Callable[..., list[Manifest]], template: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    selector = {"watchNamespaceSelector": "finetune.dev/enabled=true"}
    roles = filter_by_kind(render(selector), "ClusterRole")
    assert collect_permissions(roles["", "finetune-operator"]) == {**OPERATOR_RIGHTS, ("", "namespaces"): {"list"}}
    assert "set either" in template({**selector, "watchNamespaces": ["team-a"]}).stderr


def test_rbac_cluster_scope_uses_one_cluster_role(render: Callable[..., list[Manifest]]) -> None:
    objects = render()
    assert collect_permissions(filter_by_kind(objects, "ClusterRole")["", "finetune-operator"]) == OPERATOR_RIGHTS
    (binding,) = filter_by_kind(objects, "ClusterRoleBinding").values()
    assert binding["roleRef"]["name"] == "finetune-operator"
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "finetune-operator", "namespace": "finetune-system"}
    ]
    assert set(filter_by_kind(objects, "Role")) == set(filter_by_kind(objects, "RoleBinding")) == {LEASE}


def test_rbac_permissions_equal_tested_rules() -> None:
    """By a real API server that refuses all else, and that sees each of them used: tests/operator/test_rights.py."""
    assert collect_permissions({"rules": OPERATOR_RULES}) == OPERATOR_RIGHTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_rbac_lease_role_covers_own_lease_only(
    render: Callable[..., list[Manifest]], deployment: Callable[..., Manifest], variant: str
) -> None:
    """Test that the role has the tested rules and covers the Lease that the operator is configured with."""
    objects = render(VARIANTS[variant])
    assert filter_by_kind(objects, "Role")[LEASE]["rules"] == build_lease_rules("finetune-operator")
    assert filter_by_kind(objects, "RoleBinding")[LEASE]["roleRef"]["name"] == LEASE[1]
    variables = read_environment(deployment(VARIANTS[variant]))
    assert variables["FINETUNE_OPERATOR_LEASE_NAMESPACE"] == "finetune-system"
    assert variables["FINETUNE_OPERATOR_LEASE_NAME"] == "finetune-operator"


@pytest.mark.parametrize(("variant", "kind"), [("whole cluster", "ClusterRole"), ("two namespaces", "Role")])
def test_rbac_kueue_enabled_adds_list_workloads(render: Callable[..., list[Manifest]], variant: str, kind: str) -> None:
    roles = filter_by_kind(render({**VARIANTS[variant], "kueue": {"enabled": True}}), kind)
    mine = [collect_permissions(role) for (_, name), role in roles.items() if name == "finetune-operator"]
    assert mine
    assert all(permissions == {**OPERATOR_RIGHTS, ("kueue.x-k8s.io", "workloads"): {"list"}} for permissions in mine)


def test_rbac_named_namespaces_use_roles_only(render: Callable[..., list[Manifest]]) -> None:
    objects = render(VARIANTS["two namespaces"])
    expected = {("team-a", "finetune-operator"), ("team-b", "finetune-operator")}
    assert set(filter_by_kind(objects, "Role")) == set(filter_by_kind(objects, "RoleBinding")) == expected | {LEASE}
    assert all(collect_permissions(filter_by_kind(objects, "Role")[key]) == OPERATOR_RIGHTS for key in expected)
    for binding in filter_by_kind(objects, "RoleBinding").values():
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["subjects"][0]["namespace"] == "finetune-system"
    assert not filter_by_kind(objects, "ClusterRoleBinding")
    assert {name for _, name in filter_by_kind(objects, "ClusterRole")} == {
        "finetune-operator-edit",
        "finetune-operator-view",
    }


def test_rbac_numeric_namespace_stays_string(render: Callable[..., list[Manifest]]) -> None:
    """YAML reads an unquoted one as a number, which the API server refuses."""
    roles = filter_by_kind(render({"watchNamespaces": ["123"]}), "Role")
    assert ("123", "finetune-operator") in roles


@pytest.mark.parametrize("role", ["edit", "view"])
def test_rbac_user_roles_never_write_status(render: Callable[..., list[Manifest]], role: str) -> None:
    cluster_role = filter_by_kind(render(), "ClusterRole")["", f"finetune-operator-{role}"]
    assert collect_permissions(cluster_role) == TENANT_RIGHTS[role]
    assert cluster_role["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"


def test_rbac_edit_role_aggregates_to_admin(render: Callable[..., list[Manifest]]) -> None:
    """Kubernetes aggregates by label: there is no third role, so no third list of rights."""
    roles = [manifest["metadata"] for manifest in filter_by_kind(render(), "ClusterRole").values()]
    label = "rbac.authorization.k8s.io/aggregate-to-admin"
    assert [metadata["name"] for metadata in roles if label in metadata["labels"]] == ["finetune-operator-edit"]


def test_rbac_aggregation_disabled_renders_no_user_roles(render: Callable[..., list[Manifest]]) -> None:
    objects = render({**VARIANTS["two namespaces"], "rbac": {"aggregateToDefaultRoles": False}})
    assert not filter_by_kind(objects, "ClusterRole")


def test_rbac_user_roles_without_aggregation_are_rendered(render: Callable[..., list[Manifest]]) -> None:
    cluster_roles = filter_by_kind(
        render({"rbac": {"aggregateToDefaultRoles": False, "userRoles": True}}), "ClusterRole"
    )
    for role, expected in TENANT_RIGHTS.items():
        body = cluster_roles["", f"finetune-operator-{role}"]
        assert collect_permissions(body) == expected
        assert not [label for label in body["metadata"]["labels"] if "aggregate" in label]


@pytest.mark.parametrize("variant", VARIANTS)
def test_rbac_roles_have_no_secrets_or_wildcards(render: Callable[..., list[Manifest]], variant: str) -> None:
    objects = render(VARIANTS[variant])
    roles = [*filter_by_kind(objects, "Role").values(), *filter_by_kind(objects, "ClusterRole").values()]
    assert roles
    for role in roles:
        for (group, resource), verbs in collect_permissions(role).items():
            assert resource not in FORBIDDEN_RESOURCES
            assert "*" not in {group, *verbs}
            assert not verbs & {"escalate", "bind", "impersonate"}


def test_rbac_service_account_belongs_to_deployment(render: Callable[..., list[Manifest]]) -> None:
    objects = render()
    (account,) = filter_by_kind(objects, "ServiceAccount").values()
    (deployment,) = filter_by_kind(objects, "Deployment").values()
    assert account["automountServiceAccountToken"] is False
    assert deployment["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]
