"""Namespaces that are created and deleted, with the operator's permissions in them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.operator.namespace_harness import OPERATOR_RULES, NamespaceHarness

NAMESPACE_RULE = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list"]}
"""What the operator may do in addition if it selects namespaces by label."""

_RBAC_PATH = "/apis/rbac.authorization.k8s.io/v1/namespaces"


class TenantNamespace(NamespaceHarness):
    """A watched namespace, other than that of the Lease."""

    def __init__(self, world: NamespaceHarness) -> None:
        super().__init__(world._session, world.proxy, f"team-{secrets.token_hex(4)}", world.settings)

    async def create(self) -> None:
        """Create the namespace with the operator's Role and RoleBinding."""
        await self.call("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        await self.grant_rights()

    async def grant_rights(self) -> None:
        """Create the operator's Role and RoleBinding."""
        await self.grant_role(OPERATOR_RULES)

    async def revoke_rights(self) -> None:
        """Delete the operator's Role and RoleBinding."""
        for plural in ("rolebindings", "roles"):
            await self.call("DELETE", f"{_RBAC_PATH}/{self.namespace}/{plural}/operator")

    async def delete_namespace(self) -> None:
        """Delete the namespace and its objects, as the namespace controller does."""
        path = f"/api/v1/namespaces/{self.namespace}"
        await self.call("DELETE", path)
        for plural in ("finetunejobs", "jobs", "pods"):
            for body in await self.list_objects(plural):
                options = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
                await self.call("DELETE", self.path(plural, body["metadata"]["name"]), options)
        await self.revoke_rights()
        await self.call("PUT", f"{path}/finalize", {"metadata": {"name": self.namespace}, "spec": {"finalizers": []}})


@asynccontextmanager
async def grant_cluster_rights(world: NamespaceHarness) -> AsyncIterator[None]:
    """Grant the operator its permissions in the cluster with a ClusterRole, and to list namespaces."""
    api_path = "/apis/rbac.authorization.k8s.io/v1"
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "operator"}
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "operator"}
    meta = {"metadata": {"name": "operator"}}
    await world.call("POST", f"{api_path}/clusterroles", {**meta, "rules": [*OPERATOR_RULES, NAMESPACE_RULE]})
    await world.call("POST", f"{api_path}/clusterrolebindings", {**meta, "roleRef": role, "subjects": [user]})
    try:
        yield
    finally:
        await world.call("DELETE", f"{api_path}/clusterrolebindings/operator")
        await world.call("DELETE", f"{api_path}/clusterroles/operator")
