"""One local cluster, as tests and the command line use it."""

import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from local_cluster import cache, cgroups, golden, network, node, paths, shell, state, tools
from local_cluster.console import say
from local_cluster.containerd import Client
from local_cluster.errors import Problem

READY_SECONDS = 300
END_SECONDS = 30


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
            raise Problem(f"{name!r} is no cluster name: lower-case letters, digits and dashes, 32 at most")
        self.name = name
        self._node = node.of(name)

    @property
    def is_up(self) -> bool:
        return state.alive(self.name) and state.read(self.name) is not None

    def up(self) -> None:
        """Bring it up and wait until pods can be created."""
        with cache.lock(f"cluster-{self.name}"):
            if not state.alive(self.name):
                self._clear()
                network.check_free(self._node.addresses)
                self._start()
            self._wait_ready()

    def _start(self) -> None:
        golden.copy_root(self._node.folder / "containerd")
        cgroups.create(self._node.cgroup)
        parent = self._spawn()
        child = None
        while child is None:
            if os.waitpid(parent, os.WNOHANG) != (0, 0):
                raise Problem(f"cluster {self.name} did not start: {self._last_words()}")
            time.sleep(0.02)
            child = state.child_of(parent)
        state.write_pid(self.name, child)
        network.join(self._node.addresses, child)

    def _spawn(self) -> int:
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
                (os.POSIX_SPAWN_OPEN, 1, str(self._log), flags, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )

    @property
    def _log(self) -> Path:
        (self._node.folder / "logs").mkdir(parents=True, exist_ok=True)
        return self._node.folder / "logs" / "supervisor.log"

    def _wait_ready(self) -> None:
        begun = time.monotonic()
        while state.read(self.name) is None:
            time.sleep(0.2)
            waited = time.monotonic() - begun
            if waited > 5 and not state.alive(self.name):
                raise Problem(f"cluster {self.name} did not come up: {self._last_words()}")
            if waited > READY_SECONDS:
                raise Problem(f"cluster {self.name} is not ready after {READY_SECONDS} s: {self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() or ["it said nothing"]
        return f"{lines[-1]} (all of it: {self._log})"

    def down(self) -> None:
        """End it and remove all that it kept. Images and tools stay, in the cache."""
        with cache.lock(f"cluster-{self.name}"):
            self._end()
            self._clear()

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            process = state.pid(self.name)
            if process is None:
                return
            os.kill(process, number)
            deadline = time.monotonic() + END_SECONDS
            while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
                time.sleep(0.1)  # it goes after all others of its namespace; its lock goes before

    def _clear(self) -> None:
        """Also what a killed run left behind; nothing but what carries this cluster's name."""
        network.remove_link(self._node.addresses)
        cgroups.remove(self._node.cgroup)
        if f" {self._node.folder}/" in Path("/proc/self/mountinfo").read_text():
            raise Problem(f"something is mounted below {self._node.folder}: unmount it first")
        cache.remove(self._node.folder)

    def load_images(self) -> bool:
        """Bring the images that were built last into the running cluster; whether there were new ones."""
        loaded = golden.import_into(self.containerd())
        for name in loaded:
            say(f"{name} loaded into {self.name}")
        return bool(loaded)

    def containerd(self) -> Client:
        """Its containerd, whose socket is in its own mount namespace."""
        self._state()
        return Client(node.CONTAINERD_SOCKET, ("nsenter", "--target", str(state.pid(self.name)), "--mount", "--"))

    def _state(self) -> state.State:
        found = state.read(self.name)
        if found is None or not state.alive(self.name):
            raise Problem(f"cluster {self.name} is not up: bring it up first")
        return found

    @property
    def kubeconfig(self) -> Path:
        return Path(self._state().kubeconfig)

    @property
    def s3(self) -> S3Endpoint:
        found = self._state()
        return S3Endpoint(found.s3_url, found.access_key, found.secret_key, found.region)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl against it as its administrator and return what it prints."""
        return shell.output([tools.program("kubectl"), *arguments], stdin=stdin, env=self.environment())

    def helm(self, *arguments: str) -> str:
        return shell.output([tools.program("helm"), *arguments], env=self.environment())

    def environment(self) -> dict[str, str]:
        """For other programs that talk to it; a proxy of the machine has no way to it."""
        bypass = ",".join(filter(None, [os.environ.get("NO_PROXY"), self._node.addresses.node]))
        return {"KUBECONFIG": str(self.kubeconfig), "NO_PROXY": bypass, "no_proxy": bypass}

    def report(self) -> None:
        """Say how to reach it."""
        if not self.is_up:
            say(f"cluster {self.name} is down")
            return
        say(f"cluster {self.name} is up")
        print(f"  export KUBECONFIG={self.kubeconfig}")
        print(f"  S3 at {self.s3.url} (keys: {paths.cluster_folder(self.name) / 'state.json'})")
