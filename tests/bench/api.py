"""An API server with an audit log, concurrent calls to it as administrator, and the calls in its audit log."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from tests.support.operator import api_server

Body = dict[str, Any]
_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    resources:
      - {group: ""}
      - {group: batch}
      - {group: finetune.dev}
      - {group: trainer.kubeflow.org}
      - {group: jobset.x-k8s.io}
"""


class Call(NamedTuple):
    """A call in the audit log."""

    user: str
    verb: str
    resource: str
    """Resource and subresource, such as `finetunejobs/status`."""
    name: str
    answered_at: float
    """Time of the response, in seconds since 1970."""


class Api:
    """A client of the API server and a reader of its audit log."""

    def __init__(self, session: aiohttp.ClientSession, url: str, audit: Path) -> None:
        self._session = session
        self._url = url
        self._audit = audit
        self._offset = 0

    async def call(self, method: str, path: str, body: Body | None = None) -> Body:
        """Return the decoded response. Raises SystemExit if the status is 400 or higher."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Content-Type": kind}
        async with self._session.request(method, self._url + path, json=body, headers=headers) as response:
            answer: Body = await response.json()
            if response.status >= 400:
                raise SystemExit(f"{method} {path}: {answer}")
            return answer

    async def create(self, path: str, body: Body) -> Body:
        return await self.call("POST", path, body)

    async def is_served(self, path: str) -> bool:
        async with self._session.get(self._url + path) as response:
            return response.status == 200

    async def wait_until(self, probe: Callable[[], Awaitable[bool]], seconds: float = 300) -> None:
        """Wait until `probe` returns true. Raises SystemExit after `seconds`."""
        deadline = time.monotonic() + seconds
        while not await probe():
            if time.monotonic() > deadline:
                raise SystemExit(f"the condition {probe} was not true within {seconds} s")
            await asyncio.sleep(0.5)

    async def count_changes(self, path: str, changed_names: list[str]) -> None:
        """Append the name of an object to `changed_names` at each change, until the task is cancelled."""
        version = (await self.call("GET", f"{path}?limit=1"))["metadata"]["resourceVersion"]
        while True:  # the API server closes the watches of slow readers
            url = f"{self._url}{path}?watch=1&resourceVersion={version}"
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as response:
                async for line in response.content:
                    event = json.loads(line)
                    meta = event["object"]["metadata"]
                    version = meta["resourceVersion"]
                    if event["type"] == "MODIFIED":
                        changed_names.append(meta["name"])

    def read_new_calls(self) -> list[Call]:
        """Return the calls that were logged since the last call of this method."""
        with self._audit.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        complete_lines = text.rpartition(b"\n")[0]
        self._offset += len(complete_lines) + 1 if complete_lines else 0
        return [_parse_call(json.loads(line)) for line in complete_lines.splitlines() if line]


def _parse_call(event: Body) -> Call:
    object_ref = event["objectRef"]
    resource = "/".join(part for part in (object_ref["resource"], object_ref.get("subresource")) if part)
    at = datetime.fromisoformat(event["stageTimestamp"]).timestamp()
    return Call(event["user"]["username"], event["verb"], resource, object_ref.get("name", ""), at)


async def run_all(work: Iterable[Awaitable[object]], at_once: int = 32) -> None:
    """Await all of `work`, at most `at_once` at the same time."""
    pending = iter(work)

    async def worker() -> None:
        for task in pending:
            await task

    await asyncio.gather(*(worker() for _ in range(at_once)))


def count_operator_calls(calls: Iterable[Call]) -> Counter[str]:
    """Count the calls of the operator by `verb resource`."""
    return Counter(f"{call.verb} {call.resource}" for call in calls if call.user == "operator")


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Path]]:
    """Run a separate API server with an audit log. Yields its URL and the path of the log."""
    folder.mkdir()
    (folder / "policy.yaml").write_text(_POLICY)
    log = folder / "audit.log"
    flags = {"audit-policy-file": folder / "policy.yaml", "audit-log-path": log, "audit-log-maxsize": 4096}
    with api_server.run_api_server(folder, flags) as url:
        yield url, log


@asynccontextmanager
async def connect(url: str, log: Path) -> AsyncIterator[Api]:
    """Yield a client of the API server at `url` with the audit log `log`."""
    async with api_server.open_session() as session:
        yield Api(session, url, log)
