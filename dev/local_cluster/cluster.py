"""One local cluster: start, stop, load images, run kubectl and Helm. Tests and the command line use it."""

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
    """Address and credentials of the cluster's S3 server; pods and the host use the same address."""

    url: str
    access_key: str
    secret_key: str
    region: str


class Cluster:
    """A one-node Kubernetes with an S3 server.

    `up` and `down` may be called in any state and by any process. `kubeconfig` and `s3` require a running cluster.
    """

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", name):
            raise UserError(f"{name!r} is not a valid cluster name: use up to 32 lower-case letters, digits and dashes")
        self.name = name
        self._node = node.create_node(name)

    @property
    def is_up(self) -> bool:
        return state.is_alive(self.name) and state.read(self.name) is not None

    def up(self) -> None:
        """Start the cluster if it is not running, and wait until pods can be created."""
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
                raise UserError(f"cluster {self.name} could not be started: {self._read_last_log_line()}")
            time.sleep(0.02)
            supervisor_pid = state.find_child(unshare_pid)
        state.write_pid(self.name, supervisor_pid)
        network.create_link(self._node.addresses, supervisor_pid)

    def _spawn_supervisor(self) -> int:
        """Start the supervisor in new namespaces and return the process id of unshare(1), its parent.

        The supervisor outlives this process. subprocess.Popen would warn about a child that is still running.
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
                raise UserError(f"cluster {self.name} ended while it started: {self._read_last_log_line()}")
            if elapsed > READY_TIMEOUT_SECONDS:
                raise UserError(
                    f"cluster {self.name} is not ready after {READY_TIMEOUT_SECONDS} s: {self._read_last_log_line()}"
                )

    def _read_last_log_line(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines() or ["the log is empty"]
        return f"{lines[-1]} (full log: {self._log_path})"

    def down(self) -> None:
        """Stop the cluster and remove its files. Images and tools stay in the cache."""
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
                time.sleep(0.1)  # it ends after all processes of its namespace; its lock is released earlier

    def _remove_leftovers(self) -> None:
        """Remove network link, cgroup and files of this cluster, including those of a start that was killed."""
        network.remove_link(self._node.addresses)
        cgroups.remove_cgroup(self._node.cgroup)
        if f" {self._node.folder}/" in Path("/proc/self/mountinfo").read_text():
            raise UserError(
                f"a file system is mounted below {self._node.folder}: unmount it, then run the command again"
            )
        cache.remove_folder(self._node.folder)

    def load_images(self) -> bool:
        """Load the current images into the running cluster. Return whether any of them was outdated."""
        loaded_images = golden.import_outdated(self.get_containerd())
        for name in loaded_images:
            echo(f"loaded {name} into the cluster {self.name}")
        return bool(loaded_images)

    def get_containerd(self) -> ContainerdClient:
        """Return a client that enters the mount namespace of the cluster, where containerd has its socket."""
        self._read_state()
        return ContainerdClient(
            node.CONTAINERD_SOCKET, ("nsenter", "--target", str(state.read_pid(self.name)), "--mount", "--")
        )

    def _read_state(self) -> state.ClusterState:
        cluster_state = state.read(self.name)
        if cluster_state is None or not state.is_alive(self.name):
            raise UserError(f"cluster {self.name} is not running: start it with `make cluster-up NAME={self.name}`")
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
        """Run kubectl as administrator of the cluster and return its output."""
        return shell.capture_output(
            [tools.find_program("kubectl"), *arguments], stdin=stdin, env=self.build_environment()
        )

    def helm(self, *arguments: str) -> str:
        """Run Helm as administrator of the cluster and return its output."""
        return shell.capture_output([tools.find_program("helm"), *arguments], env=self.build_environment())

    def build_environment(self) -> dict[str, str]:
        """Return environment variables for clients. A proxy of the host cannot reach the cluster, so it is bypassed."""
        no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY"), self._node.addresses.node]))
        return {"KUBECONFIG": str(self.kubeconfig), "NO_PROXY": no_proxy, "no_proxy": no_proxy}

    def print_status(self) -> None:
        """Print whether the cluster is running, and how to reach it."""
        if not self.is_up:
            echo(f"cluster {self.name} is not running")
            return
        echo(f"cluster {self.name} is running")
        self.print_environment()
        print(f"  S3 server: {self.s3.url} (keys in {paths.get_cluster_folder(self.name) / 'state.json'})")

    def print_environment(self) -> None:
        """Print the shell commands after which kubectl uses the cluster."""
        print(f"  export KUBECONFIG={self.kubeconfig}")
        print(f"  export PATH={tools.find_program('kubectl').parent}:$PATH   # contains kubectl")
