"""Logs: one JSON object a line, whoever speaks and whatever happens."""

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
from tests.operator.proxies import healthy
from tests.operator.replicas import Replica, running

from finetune_operator.telemetry import logs

if TYPE_CHECKING:
    from tests.operator.world import World


def _record(message: str = "said", **more: Any) -> logging.LogRecord:
    record = logging.LogRecord("some.logger", logging.WARNING, "", 0, message, (), None)
    record.__dict__.update(more)
    return record


def test_a_line_is_about_the_object_that_is_worked_on() -> None:
    with logs.bind_object("team", "bot", "uid-1"):
        line = json.loads(logs.JsonFormatter().format(_record()))
        text = logs.TextFormatter().format(_record())
    assert {key: line[key] for key in ("level", "logger", "message", "namespace", "name", "uid")} == {
        "level": "warning", "logger": "some.logger", "message": "said",
        "namespace": "team", "name": "bot", "uid": "uid-1",
    }  # fmt: skip
    assert text.endswith("WARNING some.logger: team/bot: said")
    assert set(json.loads(logs.JsonFormatter().format(_record()))) == {"time", "level", "logger", "message"}


def test_kopfs_own_lines_name_their_object() -> None:
    reference = {"apiVersion": "v1", "kind": "FineTuneJob", "namespace": "team", "name": "bot", "uid": "u"}
    line = json.loads(logs.JsonFormatter().format(_record(k8s_ref=reference)))
    assert (line["namespace"], line["name"], line["uid"]) == ("team", "bot", "u")


def test_exceptions_and_line_breaks_stay_in_their_line() -> None:
    try:
        int("several\nlines")
    except ValueError as error:
        text = logs.JsonFormatter().format(_record("a\nb \ud800", exc_info=(ValueError, error, error.__traceback__)))
    assert "\n" not in text
    assert "Traceback" in json.loads(text)["exception"]


# what a pod says of itself, and how the line ends
SAID = {
    "a forged line": ("no\n2026-11-26 INFO x: created the Job", "bot: no\\n2026-11-26 INFO x: created the Job"),
    "a line of Windows": ("no\r\nmore", "bot: no\\r\\nmore"),
    "an order to the terminal": ("no\x1b[2K\x9b2K\x7f", "bot: no\\x1b[2K\\x9b2K\\x7f"),
    "other ends of lines": ("a\x0bb\x0cc\x85d\u2028e", "bot: a\\x0bb\\x0cc\\x85d\\u2028e"),
    "right to left": ("a\u202eb\u2066", "bot: a\\u202eb\\u2066"),
    "half a character": ("a\ud800", "bot: a\\ud800"),
    "no harm": ("données, \U0001f600 \\n", "bot: données, \U0001f600 \\n"),
}


@pytest.mark.parametrize(("message", "end"), SAID.values(), ids=SAID)
def test_no_message_looks_like_another_line(message: str, end: str) -> None:
    with logs.bind_object("team", "bot", "uid-1"):
        text = logs.TextFormatter().format(_record(message))
    assert text.endswith(end)
    assert len(text.splitlines()) == 1


def test_a_traceback_keeps_its_lines() -> None:
    try:
        int("x")
    except ValueError as error:
        text = logs.TextFormatter().format(_record(exc_info=(ValueError, error, error.__traceback__)))
    first, second, *_, last = text.splitlines()
    assert first.endswith("WARNING some.logger: said")
    assert second == "Traceback (most recent call last):"
    assert last.startswith("ValueError: ")


LEFT_OPEN = """
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


def test_only_a_watch_that_kopf_leaves_open_is_no_news() -> None:
    said = subprocess.run([sys.executable, "-c", LEFT_OPEN], check=True, capture_output=True, text=True).stderr
    assert "another's" in said
    assert "kopf's" not in said


@pytest.mark.cluster
async def test_every_line_of_a_life_is_json(world: World, tmp_path: Path) -> None:
    """An API server that is away at first, a run, and the end; none of it is a traceback."""
    replica = Replica(world, tmp_path, {"log_format": "json"})
    replica.proxy.trouble = _away
    with running(replica):
        await world.until(lambda: _has(replica, "the first list: "))
        replica.proxy.trouble = healthy
        await world.apply()
        body = await world.until(lambda: world.get("finetunejobs"))
        await world.reason("JobCreated")
        replica.send(signal.SIGTERM)
        await asyncio.to_thread(replica.process.wait, 10)
    lines = [json.loads(line) for line in replica.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    about = [line for line in lines if line.get("uid") == body["metadata"]["uid"]]
    assert {(line["namespace"], line["name"]) for line in about} == {(world.namespace, "bot")}
    assert {"created the Job"} < {line["message"] for line in about}
    assert any(line["logger"].startswith("kopf") for line in lines)
    assert [line for line in lines if "exception" in line] == []


async def _away(_: web.Request) -> None:
    raise ConnectionResetError


async def _has(replica: Replica, word: str) -> bool:
    return word in replica.log.read_text()


@pytest.mark.cluster
@pytest.mark.parametrize("seconds", [0.5, 2.5], ids=["before the watches", "as the watches list"])
async def test_a_stop_soon_after_the_start_is_no_error(world: World, tmp_path: Path, seconds: float) -> None:
    replica = Replica(world, tmp_path, {"log_format": "json"})
    for number in range(300):
        await world.apply(f"bot-{number}", {"suspend": True})
    with running(replica):
        await world.until(lambda: _has(replica, "Suspended"))
        await asyncio.sleep(seconds)
        replica.send(signal.SIGTERM)
        await asyncio.to_thread(replica.process.wait, 10)
    lines = [json.loads(line) for line in replica.log.read_text().splitlines()]
    assert [line for line in lines if line["level"] in ("error", "critical") or "exception" in line] == []
    assert any("has given the Lease back" in line["message"] for line in lines)


@pytest.mark.cluster
async def test_what_ends_the_operator_is_a_line_too(world: World, tmp_path: Path) -> None:
    replica = Replica(world, tmp_path, {"log_format": "json"})
    with socket.create_server(("", replica.metrics_port)), running(replica):
        assert await asyncio.to_thread(replica.process.wait, 20) == 1
    lines = [json.loads(line) for line in replica.log.read_text().splitlines()]
    assert "the operator has ended" in {line["message"] for line in lines}
    assert str(replica.metrics_port) in json.dumps(lines)
