"""Renders templates. They share style sheet, filters and charts with the reports of runs."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader
from starlette.responses import HTMLResponse, Response

from finetune_cli.ui.views.settings import format_value
from finetune_cli.ui.views.times import format_age
from finetune_cli.ui.views.tones import get_phase_tone, get_verdict_tone
from finetune_trainer.reporting.environment import create_environment

_STATIC = {"ui.css": "text/css", "ui.js": "text/javascript", "icon.svg": "image/svg+xml"}


@cache
def get_environment() -> Environment:
    """Return the environment, which is created once: everything is escaped, and missing values are errors."""
    shared = create_environment()
    loader = ChoiceLoader([PackageLoader("finetune_cli.ui"), PackageLoader("finetune_trainer.reporting")])
    environment = shared.overlay(loader=loader, cache_size=50)
    environment.filters = {
        **shared.filters,
        "age": format_age,
        "setting": format_value,
        "phase_tone": get_phase_tone,
        "verdict_tone": get_verdict_tone,
    }
    return environment


def render(template: str, status_code: int = 200, /, **context: Any) -> Response:
    """Return a page."""
    return HTMLResponse(get_environment().get_template(f"{template}.html.j2").render(context), status_code)


@cache
def read_static(name: str) -> Response | None:
    """Return a file that the pages load, or None if there is none of that name."""
    if name not in _STATIC:
        return None
    content = (files("finetune_cli.ui") / "static" / name).read_text("utf-8")
    if name == "ui.css":
        content = (files("finetune_trainer.reporting") / "templates" / "page.css").read_text("utf-8") + content
    return Response(content, media_type=_STATIC[name])
