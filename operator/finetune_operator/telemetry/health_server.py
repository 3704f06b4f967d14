"""Where the kubelet asks whether the operator lives and is ready, and Prometheus for its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.registry import Collector

HealthCheck = Callable[[], Mapping[str, Any]]
"""What there is to say; raises `RuntimeError` if all is not well."""


class HealthServer:
    """HTTP servers on all of the pod's addresses, of either family."""

    def __init__(self) -> None:
        self._runners: list[web.AppRunner] = []

    async def serve_health(self, port: int, check_liveness: HealthCheck, check_readiness: HealthCheck) -> None:
        """`/healthz` and `/readyz`; port 0 serves nothing."""
        await self._start_server(
            port, {"/healthz": _build_handler(check_liveness), "/readyz": _build_handler(check_readiness)}
        )

    async def serve_metrics(self, port: int, collector: Collector) -> None:
        """`/metrics`; port 0 serves nothing."""
        await self._start_server(port, {"/metrics": make_aiohttp_handler(collector)})

    async def _start_server(self, port: int, routes: Mapping[str, Any]) -> None:
        if not port:
            return
        app = web.Application()
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, port=port).start()

    async def close(self) -> None:
        """Answer no more."""
        for runner in self._runners:
            await runner.cleanup()


def _build_handler(check_health: HealthCheck) -> Callable[[web.Request], Any]:
    async def handle(_: web.Request) -> web.Response:
        try:
            return web.json_response(dict(check_health()))
        except RuntimeError as error:
            return web.json_response({"error": str(error)}, status=503)

    return handle
