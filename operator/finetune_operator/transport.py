"""One request of the API server: sent, measured, and its answer understood.

It calls the generated client's transport rather than its typed methods: turning each object into the client's models
costs more than the call, and drops fields that this version of the client does not know.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from finetune_operator import metrics

Body = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class ApiError(Exception):
    """The API server's refusal."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""


NO_ANSWER = (aiohttp.ClientError, TimeoutError)
"""What is raised where the API server does not answer."""


async def load_configuration() -> Configuration:
    """From the service account in a pod, else from `KUBECONFIG`; the order that kopf has too."""
    # Without it each request reads ~/.netrc in a thread.
    configuration = Configuration(client_session_kwargs={"trust_env": False})
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    else:
        await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


class Transport:
    """Connections to the API server."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def open(self, configuration: Configuration) -> None:
        """To be done before the first call."""
        self._client = ApiClient(configuration)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> Body:
        """The answer's body. Raises `ApiError`, or one of `NO_ANSWER`."""
        verb, resource = verb_and_resource(method, path)
        began, code = time.perf_counter(), "none"
        try:
            status, retry_after, text = await self._send(method, path, query, body, content_type)
            code = str(status)
        finally:
            metrics.API_REQUESTS.labels(verb, resource, code).inc()
            metrics.API_SECONDS.labels(verb, resource).observe(time.perf_counter() - began)
        if status >= 400:
            raise _error(status, retry_after, text)
        answer: Body = json.loads(text)
        return answer

    async def _send(
        self, method: str, path: str, query: dict[str, str] | None, body: Body | None, content_type: str
    ) -> tuple[int, str | None, bytes]:
        request = await self._client.param_serialize(
            method,
            path,
            query_params=[(key, value) for key, value in (query or {}).items() if value],
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = await self._client.call_api(*request, _request_timeout=self._timeout)
        return response.status, response.headers.get("Retry-After"), await response.read()  # type: ignore[no-untyped-call]


def verb_and_resource(method: str, path: str) -> tuple[str, str]:
    """As a role names them: `/api/v1/namespaces/a/pods/b/status` is read by `get` of `pods/status`."""
    parts = path.strip("/").split("/")
    parts = parts[3:] if parts[0] == "apis" else parts[2:]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    verb = "list" if method == "GET" and len(parts) == 1 else _VERBS[method]
    return verb, "/".join([parts[0], *parts[2:]])


def _error(status: int, retry_after: str | None, text: bytes) -> ApiError:
    """Proxies answer with pages of their own, so anything may stand in an error's body."""
    try:
        said = json.loads(text)
    except ValueError:
        said = {}
    reason, message = (said.get("reason"), said.get("message")) if isinstance(said, dict) else (None, None)
    wait = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
    return ApiError(status, str(reason or "Unknown"), str(message or text[:200].decode(errors="replace")), wait)
