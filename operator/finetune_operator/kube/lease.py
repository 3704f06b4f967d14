"""The Lease object that replicas use for leader election."""

from __future__ import annotations

from finetune_operator.api.objects import Body
from finetune_operator.kube.transport import ApiError, Transport

_API_PATH = "/apis/coordination.k8s.io/v1"


class LeaseLock:
    """Reads and writes one Lease object. Calls may raise `ApiError` or one of `CONNECTION_ERRORS`."""

    def __init__(self, transport: Transport, namespace: str, name: str) -> None:
        self._transport = transport
        self._leases_path = f"{_API_PATH}/namespaces/{namespace}/leases"
        self._name = name

    async def read(self) -> Body | None:
        """Return the Lease, or None if it does not exist."""
        try:
            return await self._transport.call("GET", f"{self._leases_path}/{self._name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create_or_update(self, current: Body | None, spec: Body) -> Body:
        """Create the Lease, or replace this version of it. Raises `ApiError` (409) after a concurrent write."""
        if current is None:
            return await self._transport.call(
                "POST", self._leases_path, body={"metadata": {"name": self._name}, "spec": spec}
            )
        body = {"metadata": current["metadata"], "spec": spec}
        return await self._transport.call("PUT", f"{self._leases_path}/{self._name}", body=body)
