"""The web application."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from finetune_cli.ui.pages import Pages, show_error
from finetune_cli.ui.security import AccessControl
from finetune_cli.ui.source import Source
from finetune_operator.client import ClientError

_OBJECT = "{namespace}/{name}"
Endpoint = Callable[[Request], Response]


def build_app(source: Source, token: str, port: int) -> Starlette:
    """Build the application for this port of the loopback interface."""
    pages = Pages(source)
    endpoints: dict[str, Endpoint] = {
        "/": pages.show_runs,
        f"/runs/{_OBJECT}": pages.show_run,
        f"/runs/{_OBJECT}/log": pages.show_log,
        f"/runs/{_OBJECT}/report": pages.show_report,
        "/compare": pages.compare,
        "/schedules": pages.show_schedules,
        f"/schedules/{_OBJECT}": pages.show_schedule,
        f"/schedules/{_OBJECT}/report": pages.show_schedule_report,
        "/sweeps": pages.show_sweeps,
        f"/sweeps/{_OBJECT}": pages.show_sweep,
        f"/sweeps/{_OBJECT}/report": pages.show_sweep_report,
        "/history": pages.show_history,
        "/history/result": pages.show_result,
        "/history/log": pages.show_stored_log,
        "/history/report": pages.show_stored_report,
        "/static/{name}": pages.send_static,
    }
    return Starlette(
        routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in endpoints.items()],
        middleware=[Middleware(AccessControl, token=token, port=port)],
        exception_handlers={HTTPException: show_error, ClientError: show_error, Exception: show_error},
    )
