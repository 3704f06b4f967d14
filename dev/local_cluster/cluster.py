"""One local cluster, as tests and the command line use it."""

import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from local_cluster import cache, cgroups, golden, network, node, paths, shell, state, tools
from local_cluster.console import echo
from local_cluster.containerd import ContainerdClient
from local_cluster.errors import UserError

READY_TIMEOUT_SECONDS = 300
TERMINATION_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class S3Endpoint:
    """A real S3 server that pods and the host reach at the same address."""

    url: str
    access_key: str
    secret_key: str
    region: str


class Cluster:
    """A one-node Kubernetes with an S3 server beside it.

    `up` and `down` may be called in any state and by any process. `kubeconfig` and `s3` can be asked for once it is up.
    """

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", name):
            raise UserError(f"{name!r} is no cluster name: lower-case letters, digits and dashes, 32 at most")
        self.name = name
        self._node = node.create_node(name)

    @property
    def is_up(self) -> bool:
        return state.is_alive(self.name) and state.read(self.name) is not None

    def up(self) -> None:
        """Bring it up and wait until pods can be created."""
        with cache.lock(f"cluster-{self.name}"):
            if not state.is_alive(self.name):
                self._remove_leftovers()
                network.check_addresses_free(self._node.addresses)
                self._start_supervisor()
            self._wait_until_ready()

    def _start_supervisor(self) -> None:
        golden.copy_root(self._node.folder / "containerd")
        cgroups.create_cgroup(self._node.cgroup)
        unshare_pid = self._spawn_supervisor()
        supervisor_pid = None
        while supervisor_pid is None:
            if os.waitpid(unshare_pid, os.WNOHANG) != (0, 0):
                raise UserError(f"cluster {self.name} did not start: {self._read_last_log_line()}")
            time.sleep(0.02)
            supervisor_pid = state.find_child(unshare_pid)
        state.write_pid(self.name, supervisor_pid)
        network.create_link(self._node.addresses, supervisor_pid)

    def _spawn_supervisor(self) -> int:
        """unshare makes the namespaces; the supervisor is its child, and the first process in there.

        It outlives this process and is no business of it, so there is no Popen, which would warn of a child left alone.
        """
        namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        program = [sys.executable, "-m", "local_cluster.supervisor", self.name]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        return os.posix_spawnp(
            "unshare",
            ["unshare", *namespaces, *program],
            {**os.environ, "PYTHONPATH": str(paths.REPOSITORY / "dev")},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self._log_path), flags, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )

    @property
    def _log_path(self) -> Path:
        (self._node.folder / "logs").mkdir(parents=True, exist_ok=True)
        return self._node.folder / "logs" / "supervisor.log"

    def _wait_until_ready(self) -> None:
        started = time.monotonic()
        while state.read(self.name) is None:
            time.sleep(0.2)
            elapsed = time.monotonic() - started
            if elapsed > 5 and not state.is_alive(self.name):
                raise UserError(f"cluster {self.name} did not come up: {self._read_last_log_line()}")
            if elapsed > READY_TIMEOUT_SECONDS:
                raise UserError(
                    f"cluster {self.name} is not ready after {READY_TIMEOUT_SECONDS} s: {self._read_last_log_line()}"
                )

    def _read_last_log_line(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines() or ["it said nothing"]
        return f"{lines[-1]} (all of it: {self._log_path})"

    def down(self) -> None:
        """End it and remove all that it kept. Images and tools stay, in the cache."""
        with cache.lock(f"cluster-{self.name}"):
            self._terminate_supervisor()
            self._remove_leftovers()

    def _terminate_supervisor(self) -> None:
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            supervisor_pid = state.read_pid(self.name)
            if supervisor_pid is None:
                return
            os.kill(supervisor_pid, signal_number)
            deadline = time.monotonic() + TERMINATION_TIMEOUT_SECONDS
            while Path(f"/proc/{supervisor_pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.1)  # it goes after all others of its namespace; its lock goes before

    def _remove_leftovers(self) -> None:
        """Also what a killed run left behind; nothing but what carries this cluster's name."""
        network.remove_link(self._node.addresses)
        cgroups.remove_cgroup(self._node.cgroup)
        if f" {self._node.folder}/" in Path("/proc/self/mountinfo").read_text():
            raise UserError(f"something is mounted below {self._node.folder}: unmount it first")
        cache.remove_folder(self._node.folder)

    def load_images(self) -> bool:
        """Bring the images that were built last into the running cluster; whether there were new ones."""
        loaded_images = golden.import_outdated(self.get_containerd())
        for name in loaded_images:
            echo(f"{name} loaded into {self.name}")
        return bool(loaded_images)

    def get_containerd(self) -> ContainerdClient:
        """Its containerd, whose socket is in its own mount namespace."""
        self._read_state()
        return ContainerdClient(
            node.CONTAINERD_SOCKET, ("nsenter", "--target", str(state.read_pid(self.name)), "--mount", "--")
        )

    def _read_state(self) -> state.ClusterState:
        cluster_state = state.read(self.name)
        if cluster_state is None or not state.is_alive(self.name):
            raise UserError(f"cluster {self.name} is not up: bring it up first")
        return cluster_state

    @property
    def kubeconfig(self) -> Path:
        return Path(self._read_state().kubeconfig)

    @property
    def s3(self) -> S3Endpoint:
        cluster_state = self._read_state()
        return S3Endpoint(
            cluster_state.s3_url, cluster_state.access_key, cluster_state.secret_key, cluster_state.region
        )

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl against it as its administrator and return what it prints."""
        return shell.capture_output(
            [tools.find_program("kubectl"), *arguments], stdin=stdin, env=self.build_environment()
        )

    def helm(self, *arguments: str) -> str:
        return shell.capture_output([tools.find_program("helm"), *arguments], env=self.build_environment())

    def build_environment(self) -> dict[str, str]:
        """For other programs that talk to it; a proxy of the machine has no way to it."""
        no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY"), self._node.addresses.node]))
        return {"KUBECONFIG": str(self.kubeconfig), "NO_PROXY": no_proxy, "no_proxy": no_proxy}

    def print_status(self) -> None:
        """Say how to reach it."""
        if not self.is_up:
            echo(f"cluster {self.name} is down")
            return
        echo(f"cluster {self.name} is up")
        print(f"  export KUBECONFIG={self.kubeconfig}")
        print(f"  S3 at {self.s3.url} (keys: {paths.get_cluster_folder(self.name) / 'state.json'})")
