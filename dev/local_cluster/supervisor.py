"""The one process that a cluster consists of: first in its own PID, mount and network namespaces, parent of all parts.

The kernel ends whatever is left in a PID namespace with its first process, and drops bridge, firewall rules and mounts
with their namespaces. So there is nothing to clean up, whether this ends by a signal, a fault, or a kill -9.
Run as `python -m local_cluster.supervisor NAME` by cluster.py.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from local_cluster import containerd, network, node, pki, shell, state, tools
from local_cluster.console import last_line, say
from local_cluster.errors import Problem
from local_cluster.node import Node

STEP_SECONDS = 120
# What the parts keep in places that cannot be configured; each gets a folder of its own there.
_PRIVATE = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers", "/run/netns", "/run/containerd")


class _Stop(BaseException):
    """Asked to end."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop


class Supervisor:
    """Starts the parts in order, then waits for the first of them to end."""

    def __init__(self, target: Node, s3_keys: Mapping[str, str]) -> None:
        self._node = target
        self._s3_keys = s3_keys
        self._parts: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        name, *arguments = command
        elsewhere = {"containerd": "containerd", "dns": sys.executable}  # Debian's, and our own
        path = elsewhere.get(name) or tools.program(name)
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                [path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NO_PROXY": "*", **(environment or {})},
            )
        self._parts.append((name, process))

    def _log(self, name: str) -> Path:
        return self._node.folder / "logs" / f"{name}.log"

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        """Until it is ready; not longer than the limit, and not when a part has ended."""
        begun = time.monotonic()
        while not ready():
            for name, process in self._parts:
                if process.poll() is not None:
                    raise Problem(self._ended(name, process.returncode))
            if time.monotonic() - begun > STEP_SECONDS:
                raise Problem(f"{what} is not ready after {STEP_SECONDS} s: see {self._node.folder / 'logs'}")
            time.sleep(0.2)
        say(f"{what} after {time.monotonic() - begun:.1f} s")

    def _ended(self, name: str, code: int) -> str:
        log = self._log(name)
        return f"{name} ended with exit code {code}: {last_line(log)} (all of it: {log})"

    def bring_up(self) -> None:
        self.start(node.versitygw(self._node), self._s3_keys)
        self.start(["containerd", f"--config={self._node.config('containerd.toml')}"])
        self.start(node.etcd(self._node))
        self.start(node.kube_apiserver(self._node))
        self.wait("API server ready", lambda: self._kubectl("get", "--raw=/readyz"))
        self.start(node.dns(self._node))
        self.start(node.kube_controller_manager(self._node))
        self.start(node.kube_scheduler(self._node))
        self.wait("containerd ready", containerd.Client(node.CONTAINERD_SOCKET).answers)
        self.start(node.kubelet(self._node))
        self.start(node.kube_proxy(self._node))
        self.wait("node ready", lambda: self._kubectl("wait", "--for=condition=Ready", f"node/{self._node.name}"))
        self.wait("default service account", lambda: self._kubectl("get", "serviceaccount", "default"))

    def _kubectl(self, *arguments: str) -> bool:
        config = f"--kubeconfig={self._node.kubeconfig('admin')}"
        return shell.succeeds([tools.program("kubectl"), config, "--request-timeout=5s", *arguments])

    def watch(self) -> None:
        """Collect every child that ends, orphans of containers included; the first part among them ends it all."""
        while True:
            pid, status = os.waitpid(-1, 0)
            for name, process in self._parts:
                if process.pid == pid:
                    raise Problem(self._ended(name, os.waitstatus_to_exitcode(status)))

    def bring_down(self) -> None:
        for name, process in reversed(self._parts):
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                say(f"{name} does not end, killing it")
                process.kill()


def _make_private(folder: Path) -> None:
    for place in _PRIVATE:
        Path(place).mkdir(parents=True, exist_ok=True)
        own = folder / "private" / place.strip("/").replace("/", "-")
        own.mkdir(parents=True)
        shell.output(["mount", "--bind", own, place])
    shell.output(["mount", "--make-rshared", "/"])  # a volume mounted by the kubelet has to show up in containers


def _write_configs(target: Node) -> None:
    cni = target.config("cni")
    cni.mkdir()
    (cni / "pods.conflist").write_text(node.cni_config())
    root, run = target.folder / "containerd", Path("/run/containerd")
    config = containerd.config(root, run / "state", node.CONTAINERD_SOCKET, cni)
    target.config("containerd.toml").write_text(config)
    target.config("kubelet.json").write_text(node.kubelet_config(target))
    target.config("kube-proxy.json").write_text(node.kube_proxy_config(target))
    for name in ("logs", "s3"):
        (target.folder / name).mkdir(exist_ok=True)


def _describe(target: Node) -> state.State:
    return state.State(
        kubeconfig=str(target.kubeconfig("admin")),
        s3_url=target.addresses.s3,
        access_key="local",
        secret_key=secrets.token_urlsafe(24),
        region=node.REGION,
    )


def run(target: Node, description: state.State) -> None:
    """The life of a cluster."""
    keys = {"ROOT_ACCESS_KEY_ID": description.access_key, "ROOT_SECRET_ACCESS_KEY": description.secret_key}
    supervisor = Supervisor(target, keys)
    try:
        _make_private(target.folder)
        supervisor.wait("network ready", network.joined)
        network.configure(target.addresses)
        pki.create(target)
        _write_configs(target)
        supervisor.bring_up()
        state.write(target.name, description)
        supervisor.watch()
    except _Stop:
        say("asked to end")
    finally:
        supervisor.bring_down()


def main() -> int:
    signal.signal(signal.SIGTERM, _stop)
    target = node.of(sys.argv[1])
    with state.hold(target.name):
        try:
            run(target, _describe(target))
        except Problem as problem:
            say(str(problem))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
