"""Completion of the names of runs in the shell."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import typer

_TIMEOUT_SECONDS = 2.0


def complete_runs(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the runs that begin with what is typed. Without a cluster, there are none."""
    return [name for name in _call_in_time(lambda: _list_names(context.params)) if name.startswith(incomplete)]


def _list_names(parameters: dict[str, Any]) -> list[str]:
    with suppress(Exception):  # whatever it is, the shell's line must stay as it is
        from finetune_operator.client import Client

        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        client = Client(
            parameters.get("namespace"), context=parameters.get("context"), kubeconfig=parameters.get("kubeconfig")
        )
        return [str(body["metadata"]["name"]) for body in client.jobs.list_bodies()]
    return []


def _call_in_time(function: Callable[[], list[str]]) -> list[str]:
    """Return the result of a function, or nothing if it takes too long: the user waits for the completion."""
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.extend(function()), daemon=True)
    thread.start()
    thread.join(_TIMEOUT_SECONDS)
    return list(names)
