"""The supervisor of a cluster: process 1 of its PID namespace, and the parent of all its components.

When process 1 ends, the kernel kills the other processes of its PID namespace and removes bridges, firewall rules and
mounts with their namespaces. Nothing remains to be cleaned up, even after SIGKILL. cluster.py runs this module as
`python -m local_cluster.supervisor NAME`.
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
from local_cluster.console import echo, read_last_line
from local_cluster.errors import UserError
from local_cluster.node import Node

STEP_TIMEOUT_SECONDS = 120
# Folders of the components that cannot be configured. A folder of the cluster is mounted over each of them.
_PRIVATE_FOLDERS = (
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/log/pods",
    "/var/log/containers",
    "/run/netns",
    "/run/containerd",
)


class _ShutdownRequested(BaseException):
    """The supervisor received SIGTERM."""


def _request_shutdown(_number: int, _frame: FrameType | None) -> None:
    raise _ShutdownRequested


class Supervisor:
    """Starts the components of a node in order, and ends when one of them ends."""

    def __init__(self, target: Node, s3_keys: Mapping[str, str]) -> None:
        self._node = target
        self._s3_keys = s3_keys
        self._components: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start_component(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a component, with its output in a log file of its name."""
        name, *arguments = command
        special_paths = {"containerd": "containerd", "dns": sys.executable}  # from Debian; a module of this package
        path = special_paths.get(name) or tools.find_program(name)
        with self._get_log_path(name).open("ab") as log:
            process = subprocess.Popen(
                [path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NO_PROXY": "*", **(environment or {})},
            )
        self._components.append((name, process))

    def _get_log_path(self, name: str) -> Path:
        return self._node.folder / "logs" / f"{name}.log"

    def wait_until_ready(self, description: str, is_ready: Callable[[], bool]) -> None:
        """Wait until `is_ready` returns true. Raises UserError after 120 seconds, or when a component has ended."""
        started = time.monotonic()
        while not is_ready():
            for name, process in self._components:
                if process.poll() is not None:
                    raise UserError(self._describe_exit(name, process.returncode))
            if time.monotonic() - started > STEP_TIMEOUT_SECONDS:
                raise UserError(
                    f"{description} is not ready after {STEP_TIMEOUT_SECONDS} s: see {self._node.folder / 'logs'}"
                )
            time.sleep(0.2)
        echo(f"{description} is ready after {time.monotonic() - started:.1f} s")

    def _describe_exit(self, name: str, exit_code: int) -> str:
        log = self._get_log_path(name)
        return f"{name} ended with exit code {exit_code}: {read_last_line(log)} (full log: {log})"

    def start_all(self) -> None:
        """Start all components and wait until pods can be created."""
        self.start_component(node.build_versitygw_command(self._node), self._s3_keys)
        self.start_component(["containerd", f"--config={self._node.config_path('containerd.toml')}"])
        self.start_component(node.build_etcd_command(self._node))
        self.start_component(node.build_kube_apiserver_command(self._node))
        self.wait_until_ready("API server", lambda: self._kubectl_succeeds("get", "--raw=/readyz"))
        self.start_component(node.build_dns_command(self._node))
        self.start_component(node.build_kube_controller_manager_command(self._node))
        self.start_component(node.build_kube_scheduler_command(self._node))
        self.wait_until_ready("containerd", containerd.ContainerdClient(node.CONTAINERD_SOCKET).is_ready)
        self.start_component(node.build_kubelet_command(self._node))
        self.start_component(node.build_kube_proxy_command(self._node))
        self.wait_until_ready(
            "node", lambda: self._kubectl_succeeds("wait", "--for=condition=Ready", f"node/{self._node.name}")
        )
        self.wait_until_ready(
            "default service account", lambda: self._kubectl_succeeds("get", "serviceaccount", "default")
        )

    def _kubectl_succeeds(self, *arguments: str) -> bool:
        kubeconfig_argument = f"--kubeconfig={self._node.kubeconfig_path('admin')}"
        return shell.succeeds([tools.find_program("kubectl"), kubeconfig_argument, "--request-timeout=5s", *arguments])

    def reap_children(self) -> None:
        """Reap ended children, including orphans of containers. Raises UserError when a component is among them."""
        while True:
            pid, status = os.waitpid(-1, 0)
            for name, process in self._components:
                if process.pid == pid:
                    raise UserError(self._describe_exit(name, os.waitstatus_to_exitcode(status)))

    def stop_all(self) -> None:
        """Stop all components in reverse order. A component that does not end within 5 s is killed."""
        for name, process in reversed(self._components):
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                echo(f"{name} did not end within 5 s of SIGTERM; killing it")
                process.kill()


def _mount_private_folders(folder: Path) -> None:
    for mount_point in _PRIVATE_FOLDERS:
        Path(mount_point).mkdir(parents=True, exist_ok=True)
        private_folder = folder / "private" / mount_point.strip("/").replace("/", "-")
        private_folder.mkdir(parents=True)
        shell.capture_output(["mount", "--bind", private_folder, mount_point])
    # Shared propagation makes volumes that the kubelet mounts visible in containers.
    shell.capture_output(["mount", "--make-rshared", "/"])


def _write_config_files(target: Node) -> None:
    cni_folder = target.config_path("cni")
    cni_folder.mkdir()
    (cni_folder / "pods.conflist").write_text(node.render_cni_config())
    root, run_folder = target.folder / "containerd", Path("/run/containerd")
    config = containerd.render_config(root, run_folder / "state", node.CONTAINERD_SOCKET, cni_folder)
    target.config_path("containerd.toml").write_text(config)
    target.config_path("kubelet.json").write_text(node.render_kubelet_config(target))
    target.config_path("kube-proxy.json").write_text(node.render_kube_proxy_config(target))
    for name in ("logs", "s3"):
        (target.folder / name).mkdir(exist_ok=True)


def _create_state(target: Node) -> state.ClusterState:
    return state.ClusterState(
        kubeconfig=str(target.kubeconfig_path("admin")),
        s3_url=target.addresses.s3,
        access_key="local",
        secret_key=secrets.token_urlsafe(24),
        region=node.REGION,
    )


def run_cluster(target: Node, cluster_state: state.ClusterState) -> None:
    """Start the cluster, and run it until the supervisor receives SIGTERM or a component ends."""
    s3_keys = {"ROOT_ACCESS_KEY_ID": cluster_state.access_key, "ROOT_SECRET_ACCESS_KEY": cluster_state.secret_key}
    supervisor = Supervisor(target, s3_keys)
    try:
        _mount_private_folders(target.folder)
        supervisor.wait_until_ready("network", network.has_link)
        network.configure_link(target.addresses)
        pki.create_credentials(target)
        _write_config_files(target)
        supervisor.start_all()
        state.write(target.name, cluster_state)
        supervisor.reap_children()
    except _ShutdownRequested:
        echo("received SIGTERM; stopping the cluster")
    finally:
        supervisor.stop_all()


def main() -> int:
    """Run the supervisor and return its exit code: 1 if the cluster failed, else 0."""
    signal.signal(signal.SIGTERM, _request_shutdown)
    target = node.create_node(sys.argv[1])
    with state.acquire_lock(target.name):
        try:
            run_cluster(target, _create_state(target))
        except UserError as error:
            echo(str(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
