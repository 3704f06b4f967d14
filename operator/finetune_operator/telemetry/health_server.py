"""HTTP servers for the kubelet's probes and for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.registry import Collector

HealthCheck = Callable[[], Mapping[str, Any]]
"""Returns details for the response. Raises `RuntimeError` with the reason if the check fails."""


class HealthServer:
    """Serves on all addresses of the pod, IPv4 and IPv6."""

    def __init__(self) -> None:
        self._runners: list[web.AppRunner] = []

    async def serve_health(self, port: int, check_liveness: HealthCheck, check_readiness: HealthCheck) -> None:
        """Serve `/healthz` and `/readyz`. Port 0 disables the server."""
        await self._start_server(
            port, {"/healthz": _build_handler(check_liveness), "/readyz": _build_handler(check_readiness)}
        )

    async def serve_metrics(self, port: int, collector: Collector) -> None:
        """Serve `/metrics`. Port 0 disables the server."""
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
        """Stop all servers."""
        for runner in self._runners:
            await runner.cleanup()


def _build_handler(check_health: HealthCheck) -> Callable[[web.Request], Any]:
    async def handle(_: web.Request) -> web.Response:
        try:
            return web.json_response(dict(check_health()))
        except RuntimeError as error:
            return web.json_response({"error": str(error)}, status=503)

    return handle
