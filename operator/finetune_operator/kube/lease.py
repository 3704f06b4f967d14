"""The Lease by which replicas agree on a leader, as the API server keeps it."""

from __future__ import annotations

from typing import Any

from finetune_operator.kube.transport import ApiError, Transport

Body = dict[str, Any]
_API = "/apis/coordination.k8s.io/v1"


class Lease:
    """One Lease object. Calls may raise `ApiError`, or aiohttp's errors if there is no answer."""

    def __init__(self, transport: Transport, namespace: str, name: str) -> None:
        self._transport = transport
        self._path = f"{_API}/namespaces/{namespace}/leases"
        self._name = name

    async def read(self) -> Body | None:
        """As it is now; None if there is none."""
        try:
            return await self._transport.call("GET", f"{self._path}/{self._name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def write(self, before: Body | None, spec: Body) -> Body:
        """Make it, or replace this very version of it; 409 if somebody else was faster."""
        if before is None:
            return await self._transport.call("POST", self._path, body={"metadata": {"name": self._name}, "spec": spec})
        body = {"metadata": before["metadata"], "spec": spec}
        return await self._transport.call("PUT", f"{self._path}/{self._name}", body=body)
