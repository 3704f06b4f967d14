"""Replicas of the operator as processes, each behind its own proxy, which tests can kill and freeze."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from tests.support.operator.api_server import find_free_port, write_kubeconfig
from tests.support.operator.fault_proxy import FaultProxy
from tests.support.operator.namespace_harness import LEASE_NAME, NamespaceHarness


class Replica:
    """One replica as a process."""

    def __init__(self, world: NamespaceHarness, folder: Path, settings: dict[str, Any]) -> None:
        self.proxy = FaultProxy(world.proxy.target)
        self.health_port, self.metrics_port = find_free_port(), find_free_port()
        self.log = folder / "operator.log"
        self.token = "unused"
        """The token with which the replica authenticates to its proxy."""
        self._folder = folder
        self._settings = {
            "watch_namespaces": json.dumps([world.namespace]),
            "progress_interval": 1,
            "resync_interval": 30,
            "request_timeout": 5,
            "lease_namespace": world.namespace,
            "lease_name": LEASE_NAME,
            "health_port": self.health_port,
            "metrics_port": self.metrics_port,
            **settings,
        }

    def start(self) -> None:
        """Start the process. It reaches the API server only through its proxy."""
        environment = {f"FINETUNE_OPERATOR_{key.upper()}": str(value) for key, value in self._settings.items()}
        path = write_kubeconfig(self._folder, f"http://127.0.0.1:{self.proxy.port}", self.token)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator"],
                env={**os.environ, **environment, "KUBECONFIG": str(path)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def send_signal(self, signal_number: signal.Signals) -> float:
        """Send a signal. Return the monotonic time."""
        self.process.send_signal(signal_number)
        return time.monotonic()

    def list_writes(self) -> list[tuple[str, str]]:
        """Return all writes, including Events but not the Lease."""
        return [request for request in self.proxy.requests if request[0] != "GET"]

    async def fetch(self, path: str, port: int = 0) -> tuple[int, str]:
        """Return status and body of a response of the replica, or (0, "") without one."""
        url = f"http://127.0.0.1:{port or self.health_port}{path}"
        timeout = aiohttp.ClientTimeout(total=1)
        with suppress(aiohttp.ClientError, TimeoutError):
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
                return response.status, await response.text()
        return 0, ""

    async def get_role(self) -> str:
        """Return `leader` or `standby` if the replica is ready, otherwise an empty string."""
        status, text = await self.fetch("/readyz")
        return str(json.loads(text)["role"]) if status == 200 else ""


@contextmanager
def run_replica(replica: Replica) -> Iterator[None]:
    """Run a replica, and kill it at the end."""
    with replica.proxy:
        replica.start()
        try:
            yield
        finally:
            replica.process.kill()
            replica.process.wait()


class ReplicaPair:
    """A leader and a standby."""

    def __init__(self, world: NamespaceHarness, replicas: list[Replica]) -> None:
        self.world = world
        self.replicas = replicas

    async def wait_for_one_leader(self) -> tuple[Replica, Replica]:
        """Wait until there is one leader. Return it and the standby."""

        async def probe() -> list[Replica] | None:
            roles = [await replica.get_role() for replica in self.replicas]
            ready = sorted(roles) == ["leader"] + ["standby"] * (len(roles) - 1)
            return sorted(self.replicas, key=lambda replica: roles[self.replicas.index(replica)]) if ready else None

        leader, standby = await self.world.wait_until(probe, 40)
        return leader, standby

    async def wait_until_leader(self, replica: Replica, seconds: float = 20) -> float:
        """Wait until this replica leads. Return the monotonic time."""

        async def probe() -> bool:
            return await replica.get_role() == "leader"

        await self.world.wait_until(probe, seconds)
        return time.monotonic()


@asynccontextmanager
async def run_replica_pair(world: NamespaceHarness, folder: Path, **settings: Any) -> AsyncIterator[ReplicaPair]:
    """Run two replicas."""
    replicas = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        replicas.append(Replica(world, folder / name, settings))
    with run_replica(replicas[0]), run_replica(replicas[1]):
        yield ReplicaPair(world, replicas)


def are_distinct(items: list[Any], key: Callable[[Any], object]) -> bool:
    """Return whether all items have different keys."""
    return len({key(item) for item in items}) == len(items)
