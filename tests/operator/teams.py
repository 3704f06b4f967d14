"""Namespaces that come and go, with the operator's rights in them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.operator.world import RULES, World

_RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces"


class Team(World):
    """A watched namespace beside that of the operator's Lease."""

    def __init__(self, world: World) -> None:
        super().__init__(world._session, world.proxy, f"team-{secrets.token_hex(4)}", world.settings)

    async def create(self) -> None:
        """The namespace and the operator's Role and RoleBinding in it."""
        await self.call("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        await self.create_rights()

    async def create_rights(self) -> None:
        """The operator's Role and RoleBinding."""
        await self.allow(RULES)

    async def forbid(self) -> None:
        """Delete the operator's Role and RoleBinding."""
        for plural in ("rolebindings", "roles"):
            await self.call("DELETE", f"{_RBAC}/{self.namespace}/{plural}/operator")

    async def vanish(self) -> None:
        """Delete the namespace and all that is in it, as the namespace controller does."""
        path = f"/api/v1/namespaces/{self.namespace}"
        await self.call("DELETE", path)
        for plural in ("finetunejobs", "jobs", "pods"):
            for each in await self.all(plural):
                options = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
                await self.call("DELETE", self.path(plural, each["metadata"]["name"]), options)
        await self.forbid()
        await self.call("PUT", f"{path}/finalize", {"metadata": {"name": self.namespace}, "spec": {"finalizers": []}})


@asynccontextmanager
async def cluster_rights(world: World) -> AsyncIterator[None]:
    """The operator's rights in the whole cluster, by a ClusterRole."""
    api = "/apis/rbac.authorization.k8s.io/v1"
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "operator"}
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "operator"}
    meta = {"metadata": {"name": "operator"}}
    await world.call("POST", f"{api}/clusterroles", {**meta, "rules": RULES})
    await world.call("POST", f"{api}/clusterrolebindings", {**meta, "roleRef": role, "subjects": [user]})
    try:
        yield
    finally:
        await world.call("DELETE", f"{api}/clusterrolebindings/operator")
        await world.call("DELETE", f"{api}/clusterroles/operator")
