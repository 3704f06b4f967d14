"""The Lease by which replicas agree on a leader, as the API server keeps it."""

from __future__ import annotations

from finetune_operator.api.objects import Body
from finetune_operator.kube.transport import ApiError, Transport

_API_PATH = "/apis/coordination.k8s.io/v1"


class LeaseLock:
    """One Lease object. Calls may raise `ApiError`, or aiohttp's errors if there is no answer."""

    def __init__(self, transport: Transport, namespace: str, name: str) -> None:
        self._transport = transport
        self._leases_path = f"{_API_PATH}/namespaces/{namespace}/leases"
        self._name = name

    async def read(self) -> Body | None:
        """As it is now; None if there is none."""
        try:
            return await self._transport.call("GET", f"{self._leases_path}/{self._name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create_or_update(self, current: Body | None, spec: Body) -> Body:
        """Make it, or replace this very version of it; 409 if somebody else was faster."""
        if current is None:
            return await self._transport.call(
                "POST", self._leases_path, body={"metadata": {"name": self._name}, "spec": spec}
            )
        body = {"metadata": current["metadata"], "spec": spec}
        return await self._transport.call("PUT", f"{self._leases_path}/{self._name}", body=body)
