"""All log lines are JSON objects, whichever library logs them."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from tests.support.operator.fault_proxy import pass_through
from tests.support.operator.replicas import Replica, run_replica

from finetune_operator.telemetry import logs

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness


def _build_record(message: str = "said", **attributes: Any) -> logging.LogRecord:
    record = logging.LogRecord("some.logger", logging.WARNING, "", 0, message, (), None)
    record.__dict__.update(attributes)
    return record


def test_formatters_line_names_reconciled_object() -> None:
    with logs.bind_object("team", "bot", "uid-1"):
        line = json.loads(logs.JsonFormatter().format(_build_record()))
        text = logs.TextFormatter().format(_build_record())
    assert {key: line[key] for key in ("level", "logger", "message", "namespace", "name", "uid")} == {
        "level": "warning", "logger": "some.logger", "message": "said",
        "namespace": "team", "name": "bot", "uid": "uid-1",
    }  # fmt: skip
    assert text.endswith("WARNING some.logger: team/bot: said")
    assert set(json.loads(logs.JsonFormatter().format(_build_record()))) == {"time", "level", "logger", "message"}


def test_json_formatter_kopf_record_names_object() -> None:
    reference = {"apiVersion": "v1", "kind": "FineTuneJob", "namespace": "team", "name": "bot", "uid": "u"}
    line = json.loads(logs.JsonFormatter().format(_build_record(k8s_ref=reference)))
    assert (line["namespace"], line["name"], line["uid"]) == ("team", "bot", "u")


def test_json_formatter_exception_stays_on_one_line() -> None:
    try:
        int("several\nlines")
    except ValueError as error:
        text = logs.JsonFormatter().format(
            _build_record("a\nb \ud800", exc_info=(ValueError, error, error.__traceback__))
        )
    assert "\n" not in text
    assert "Traceback" in json.loads(text)["exception"]


# A message from a pod, and the end of the log line.
MESSAGES = {
    "a forged line": ("no\n2026-11-26 INFO x: created Job", "bot: no\\n2026-11-26 INFO x: created Job"),
    "a line of Windows": ("no\r\nmore", "bot: no\\r\\nmore"),
    "an order to the terminal": ("no\x1b[2K\x9b2K\x7f", "bot: no\\x1b[2K\\x9b2K\\x7f"),
    "other ends of lines": ("a\x0bb\x0cc\x85d\u2028e", "bot: a\\x0bb\\x0cc\\x85d\\u2028e"),
    "right to left": ("a\u202eb\u2066", "bot: a\\u202eb\\u2066"),
    "half a character": ("a\ud800", "bot: a\\ud800"),
    "no harm": ("données, \U0001f600 \\n", "bot: données, \U0001f600 \\n"),
}


@pytest.mark.parametrize(("message", "end"), MESSAGES.values(), ids=MESSAGES)
def test_text_formatter_hostile_message_stays_on_one_line(message: str, end: str) -> None:
    with logs.bind_object("team", "bot", "uid-1"):
        text = logs.TextFormatter().format(_build_record(message))
    assert text.endswith(end)
    assert len(text.splitlines()) == 1


def test_text_formatter_traceback_keeps_line_breaks() -> None:
    try:
        int("x")
    except ValueError as error:
        text = logs.TextFormatter().format(_build_record(exc_info=(ValueError, error, error.__traceback__)))
    first, second, *_, last = text.splitlines()
    assert first.endswith("WARNING some.logger: said")
    assert second == "Traceback (most recent call last):"
    assert last.startswith("ValueError: ")


SCRIPT_WITH_OPEN_GENERATORS = """
import asyncio
from finetune_operator.telemetry import logs

async def infinite_watch():
    try:
        yield
    finally:
        raise RuntimeError("kopf's")

async def another():
    try:
        yield
    finally:
        raise RuntimeError("another's")

async def main():
    global kept
    kept = [infinite_watch(), another()]
    for each in kept:
        await anext(each)

logs.configure_logging("info", "text")
asyncio.run(main())
"""


def test_logs_only_open_kopf_watch_is_silenced() -> None:
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT_WITH_OPEN_GENERATORS], check=True, capture_output=True, text=True
    ).stderr
    assert "another's" in output
    assert "kopf's" not in output


@pytest.mark.cluster
async def test_operator_json_format_every_line_is_json(world: NamespaceHarness, tmp_path: Path) -> None:
    """Run with an API server that is unavailable at first, reconcile a run, and stop. No line is a traceback."""
    replica = Replica(world, tmp_path, {"log_format": "json"})
    replica.proxy.interceptor = _refuse_connection
    with run_replica(replica):
        await world.wait_until(lambda: _log_contains(replica, "initial list failed: "))
        replica.proxy.interceptor = pass_through
        await world.create_finetunejob()
        body = await world.wait_until(lambda: world.get("finetunejobs"))
        await world.wait_for_reason("JobCreated")
        replica.send_signal(signal.SIGTERM)
        await asyncio.to_thread(replica.process.wait, 10)
    lines = [json.loads(line) for line in replica.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    object_lines = [line for line in lines if line.get("uid") == body["metadata"]["uid"]]
    assert {(line["namespace"], line["name"]) for line in object_lines} == {(world.namespace, "bot")}
    assert {"created Job"} < {line["message"] for line in object_lines}
    assert any(line["logger"].startswith("kopf") for line in lines)
    assert [line for line in lines if "exception" in line] == []


async def _refuse_connection(_: web.Request) -> None:
    raise ConnectionResetError


async def _log_contains(replica: Replica, text: str) -> bool:
    return text in replica.log.read_text()


@pytest.mark.cluster
@pytest.mark.parametrize("seconds", [0.5, 2.5], ids=["before the watches", "as the watches list"])
async def test_operator_stopped_soon_after_start_logs_no_error(
    world: NamespaceHarness, tmp_path: Path, seconds: float
) -> None:
    replica = Replica(world, tmp_path, {"log_format": "json"})
    for number in range(300):
        await world.create_finetunejob(f"bot-{number}", {"suspend": True})
    with run_replica(replica):
        await world.wait_until(lambda: _log_contains(replica, "Suspended"))
        await asyncio.sleep(seconds)
        replica.send_signal(signal.SIGTERM)
        await asyncio.to_thread(replica.process.wait, 10)
    lines = [json.loads(line) for line in replica.log.read_text().splitlines()]
    assert [line for line in lines if line["level"] in ("error", "critical") or "exception" in line] == []
    assert any("released the Lease" in line["message"] for line in lines)


@pytest.mark.cluster
async def test_operator_fatal_error_is_json_line(world: NamespaceHarness, tmp_path: Path) -> None:
    replica = Replica(world, tmp_path, {"log_format": "json"})
    with socket.create_server(("", replica.metrics_port)), run_replica(replica):
        assert await asyncio.to_thread(replica.process.wait, 20) == 1
    lines = [json.loads(line) for line in replica.log.read_text().splitlines()]
    assert "the operator failed" in {line["message"] for line in lines}
    assert str(replica.metrics_port) in json.dumps(lines)
