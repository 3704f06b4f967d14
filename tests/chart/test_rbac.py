"""What the operator may do is written down here a second time: a new right is a decision, not a side effect."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.chart.environment import environment
from tests.operator.world import RULES, lease_rules

Manifest = dict[str, Any]

OPERATOR_RIGHTS = {
    ("finetune.dev", "finetunejobs"): {"list", "watch", "delete"},
    ("finetune.dev", "finetunejobs/status"): {"patch"},
    ("finetune.dev", "finetunejobs/finalizers"): {"update"},
    ("batch", "jobs"): {"get", "list", "watch", "create", "patch", "delete"},
    ("", "pods"): {"list", "watch"},
    ("", "services"): {"get", "create"},
    ("", "events"): {"list", "create"},
}
TENANT_RIGHTS = {
    "edit": {
        ("finetune.dev", "finetunejobs"): {
            "get", "list", "watch", "create", "update", "patch", "delete", "deletecollection",
        },
        ("finetune.dev", "finetunejobs/status"): {"get"},
    },
    "view": {
        ("finetune.dev", "finetunejobs"): {"get", "list", "watch"},
        ("finetune.dev", "finetunejobs/status"): {"get"},
    },
}  # fmt: skip
LEASE = ("finetune-system", "finetune-operator-lease")
FORBIDDEN_RESOURCES = ("secrets", "configmaps", "nodes", "pods/exec", "pods/attach", "pods/log", "serviceaccounts", "*")
VARIANTS = {"whole cluster": {}, "two namespaces": {"watchNamespaces": ["team-a", "team-b"]}}


def rights(role: Manifest) -> dict[tuple[str, str], set[str]]:
    """(group, resource) → verbs."""
    found: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        assert set(rule) - {"resourceNames"} == {"apiGroups", "resources", "verbs"}, rule
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def of_kind(objects: list[Manifest], kind: str) -> dict[tuple[str, str], Manifest]:
    """(namespace, name) → object."""
    return {(each["metadata"].get("namespace", ""), each["metadata"]["name"]): each for each in objects
            if each["kind"] == kind}  # fmt: skip


def test_the_whole_cluster_by_one_cluster_role(render: Callable[..., list[Manifest]]) -> None:
    objects = render()
    assert rights(of_kind(objects, "ClusterRole")["", "finetune-operator"]) == OPERATOR_RIGHTS
    (binding,) = of_kind(objects, "ClusterRoleBinding").values()
    assert binding["roleRef"]["name"] == "finetune-operator"
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "finetune-operator", "namespace": "finetune-system"}
    ]
    assert set(of_kind(objects, "Role")) == set(of_kind(objects, "RoleBinding")) == {LEASE}


def test_the_rights_are_those_that_the_operator_is_tested_with() -> None:
    """By a real API server that refuses all else, and that sees each of them used: tests/operator/test_rights.py."""
    assert rights({"rules": RULES}) == OPERATOR_RIGHTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_leases_its_own_alone(
    render: Callable[..., list[Manifest]], deployment: Callable[..., Manifest], variant: str
) -> None:
    """With the rules that the operator is tested with, and the name that it is told."""
    objects = render(VARIANTS[variant])
    assert of_kind(objects, "Role")[LEASE]["rules"] == lease_rules("finetune-operator")
    assert of_kind(objects, "RoleBinding")[LEASE]["roleRef"]["name"] == LEASE[1]
    variables = environment(deployment(VARIANTS[variant]))
    assert variables["FINETUNE_OPERATOR_LEASE_NAMESPACE"] == "finetune-system"
    assert variables["FINETUNE_OPERATOR_LEASE_NAME"] == "finetune-operator"


@pytest.mark.parametrize(("variant", "kind"), [("whole cluster", "ClusterRole"), ("two namespaces", "Role")])
def test_kueues_workloads_are_read_only_where_asked_for(
    render: Callable[..., list[Manifest]], variant: str, kind: str
) -> None:
    roles = of_kind(render({**VARIANTS[variant], "kueue": {"enabled": True}}), kind)
    mine = [rights(role) for (_, name), role in roles.items() if name == "finetune-operator"]
    assert mine
    assert all(each == {**OPERATOR_RIGHTS, ("kueue.x-k8s.io", "workloads"): {"list"}} for each in mine)


def test_named_namespaces_by_roles_in_them_alone(render: Callable[..., list[Manifest]]) -> None:
    objects = render(VARIANTS["two namespaces"])
    expected = {("team-a", "finetune-operator"), ("team-b", "finetune-operator")}
    assert set(of_kind(objects, "Role")) == set(of_kind(objects, "RoleBinding")) == expected | {LEASE}
    assert all(rights(of_kind(objects, "Role")[each]) == OPERATOR_RIGHTS for each in expected)
    for binding in of_kind(objects, "RoleBinding").values():
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["subjects"][0]["namespace"] == "finetune-system"
    assert not of_kind(objects, "ClusterRoleBinding")
    assert {name for _, name in of_kind(objects, "ClusterRole")} == {"finetune-operator-edit", "finetune-operator-view"}


def test_namespace_of_digits_stays_a_name(render: Callable[..., list[Manifest]]) -> None:
    """YAML reads an unquoted one as a number, which the API server refuses."""
    roles = of_kind(render({"watchNamespaces": ["123"]}), "Role")
    assert ("123", "finetune-operator") in roles


@pytest.mark.parametrize("role", ["edit", "view"])
def test_people_write_specs_but_never_a_status(render: Callable[..., list[Manifest]], role: str) -> None:
    found = of_kind(render(), "ClusterRole")["", f"finetune-operator-{role}"]
    assert rights(found) == TENANT_RIGHTS[role]
    assert found["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"


def test_admins_are_editors(render: Callable[..., list[Manifest]]) -> None:
    """Kubernetes aggregates by label: there is no third role, so no third list of rights."""
    roles = [each["metadata"] for each in of_kind(render(), "ClusterRole").values()]
    label = "rbac.authorization.k8s.io/aggregate-to-admin"
    assert [each["name"] for each in roles if label in each["labels"]] == ["finetune-operator-edit"]


def test_roles_for_people_can_be_left_out(render: Callable[..., list[Manifest]]) -> None:
    objects = render({**VARIANTS["two namespaces"], "rbac": {"aggregateToDefaultRoles": False}})
    assert not of_kind(objects, "ClusterRole")


def test_roles_for_people_can_be_bound_by_themselves(render: Callable[..., list[Manifest]]) -> None:
    found = of_kind(render({"rbac": {"aggregateToDefaultRoles": False, "userRoles": True}}), "ClusterRole")
    for role, expected in TENANT_RIGHTS.items():
        body = found["", f"finetune-operator-{role}"]
        assert rights(body) == expected
        assert not [label for label in body["metadata"]["labels"] if "aggregate" in label]


@pytest.mark.parametrize("variant", VARIANTS)
def test_never_secrets_never_wildcards(render: Callable[..., list[Manifest]], variant: str) -> None:
    objects = render(VARIANTS[variant])
    roles = [*of_kind(objects, "Role").values(), *of_kind(objects, "ClusterRole").values()]
    assert roles
    for role in roles:
        for (group, resource), verbs in rights(role).items():
            assert resource not in FORBIDDEN_RESOURCES
            assert "*" not in {group, *verbs}
            assert not verbs & {"escalate", "bind", "impersonate"}


def test_the_service_account_is_the_deployments(render: Callable[..., list[Manifest]]) -> None:
    objects = render()
    (account,) = of_kind(objects, "ServiceAccount").values()
    (deployment,) = of_kind(objects, "Deployment").values()
    assert account["automountServiceAccountToken"] is False
    assert deployment["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]
