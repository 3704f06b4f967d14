"""The two operators that are compared, ours and Kubeflow Trainer, each run as in a cluster."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml
from tests.bench.api import Api, Body
from tests.support.operator.api_server import OPERATOR_TOKEN, find_free_port
from tests.support.operator.builders import build_manifest

from local_cluster import paths, tools

NAMESPACE = "bench"
_TICKS = os.sysconf("SC_CLK_TCK")
# Kubeflow Trainer's code fixes both of them.
_TRAINER_NAMESPACE, _TRAINER_CERTS = "kubeflow-system", Path("/tmp/k8s-webhook-server/serving-certs")
_TRAINER_SECRET = f"/api/v1/namespaces/{_TRAINER_NAMESPACE}/secrets/kubeflow-trainer-webhook-cert"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_TORCH = "manifests/base/runtimes/torch_distributed.yaml"


class Subject(NamedTuple):
    """An operator under test: the objects that users create, those that it creates for them, and its command."""

    name: str
    jobs: str
    """API path of the objects that users create."""
    children: str
    """API path of the objects that the operator creates for them."""
    writes: frozenset[str]
    """Resources that the operator writes for each new object, except Events."""
    body: Callable[[str], Body]
    command: Callable[[], list[str | Path]]

    @property
    def child(self) -> str:
        """Return the resource of the children, such as `jobs`."""
        return self.children.rpartition("/")[2]


def _build_train_job(name: str) -> Body:
    kind = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob"}
    spec = {"runtimeRef": {"name": "torch-distributed"}, "trainer": {"image": "trainer:1", "numNodes": 1}}
    return {**kind, "metadata": {"name": name}, "spec": spec}


def _build_trainer_command() -> list[str | Path]:
    program = tools.KUBEFLOW_TRAINER.folder / tools.KUBEFLOW_TRAINER.programs[0]
    return [program, "--health-probe-bind-address=0", f"--webhook-server-port={find_free_port()}"]


def _build_operator_command() -> list[str | Path]:
    """Return the command with the packages of the image only: kopf imports every client that is installed."""
    folder = paths.get_cache_folder() / "bench-operator"
    command = ["uv", "sync", "--quiet", "--frozen", "--no-dev", "--extra", "operator", "--python", choose_interpreter()]
    subprocess.run(command, env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder)}, check=True)
    return [folder / "bin" / "python", "-m", "finetune_operator"]


def choose_interpreter() -> str:
    """Return the distribution's Python if its version fits, else the current one.

    The Python of the image is built with profile-guided optimization, as that of Debian is. A Python without it needs
    more CPU time for the same work.
    """
    interpreters = [path for path in ("/usr/bin/python3.12", "/usr/bin/python3.11") if Path(path).exists()]
    return next(iter(interpreters), sys.executable)


OURS = Subject(
    "finetune-operator",
    f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs",
    f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs",
    frozenset({"jobs", "finetunejobs/status"}),
    lambda name: build_manifest(name, NAMESPACE),
    _build_operator_command,
)
TRAINER = Subject(
    "Kubeflow Trainer 2.0.0",
    f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs",
    f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets",
    frozenset({"jobsets"}),
    _build_train_job,
    _build_trainer_command,
)


class OperatorProcess:
    """CPU time and memory of a running operator, from /proc."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def cpu_seconds(self) -> float:
        """Return the CPU seconds used so far, user and system."""
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / _TICKS

    def rss_kib(self) -> int:
        """Return the resident memory in KiB."""
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@contextmanager
def run_operator(subject: Subject, url: str, folder: Path) -> Iterator[OperatorProcess]:
    """Run an operator with its default settings until the block ends. The probe and metrics ports are closed."""
    user = {"token": OPERATOR_TOKEN}
    config = {
        "current-context": "bench",
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "clusters": [{"name": "bench", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "bench", "user": user}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **config}))
    settings = {"FINETUNE_OPERATOR_HEALTH_PORT": "0", "FINETUNE_OPERATOR_METRICS_PORT": "0"}
    settings |= {"MALLOC_MMAP_THRESHOLD_": "262144"}  # as in the image
    environment = {**os.environ, "KUBECONFIG": str(folder / "kubeconfig"), **settings}
    with (folder / f"{subject.child}.log").open("ab") as log:
        process = subprocess.Popen(subject.command(), env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield OperatorProcess(process.pid)
    finally:
        process.terminate()
        process.wait(30)


async def prepare_cluster(api: Api) -> None:
    """Create permissions for the operators, the namespace of the jobs, and what Kubeflow Trainer needs to start."""
    group = "rbac.authorization.k8s.io"
    role = {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"}
    subject = {"apiGroup": group, "kind": "User", "name": "operator"}
    binding = {"metadata": {"name": "operator"}, "roleRef": role, "subjects": [subject]}
    await api.create(f"/apis/{group}/v1/clusterrolebindings", binding)
    for namespace in (NAMESPACE, _TRAINER_NAMESPACE):
        await api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    tools.ensure_built([tools.KUBEFLOW_TRAINER])
    for file in _list_trainer_crds():
        await api.create(_CRDS, yaml.safe_load(file.read_text()))
    hook = {"metadata": {"name": "validator.trainer.kubeflow.org"}}  # without rules it rejects nothing
    await api.create("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", hook)
    await api.create(_TRAINER_SECRET.rpartition("/")[0], {"metadata": {"name": _TRAINER_SECRET.rpartition("/")[2]}})
    runtime = yaml.safe_load((_module_dir("github.com/kubeflow/trainer/v2") / _TORCH).read_text())
    path = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes"
    await api.wait_until(lambda: api.is_served(path))
    await api.create(path, runtime)


async def mount_certificates(api: Api) -> None:
    """Write the certificates of Kubeflow Trainer to files, as the kubelet does; it starts no controller before."""

    async def has_certificates() -> bool:
        data = (await api.call("GET", _TRAINER_SECRET)).get("data") or {}
        _TRAINER_CERTS.mkdir(parents=True, exist_ok=True)
        for name, content in data.items():
            (_TRAINER_CERTS / name).write_bytes(base64.b64decode(content))
        return bool(data)

    await api.wait_until(has_certificates)


def _module_dir(module: str) -> Path:
    return tools.find_module_folder(tools.KUBEFLOW_TRAINER, module)


def _list_trainer_crds() -> list[Path]:
    crds_dir = _module_dir("github.com/kubeflow/trainer/v2") / "manifests" / "base" / "crds"
    return [
        *crds_dir.glob("trainer.kubeflow.org_*.yaml"),
        _module_dir("sigs.k8s.io/jobset") / "config" / "components" / "crd" / "bases" / "jobset.x-k8s.io_jobsets.yaml",
        _module_dir("sigs.k8s.io/scheduler-plugins") / "manifests" / "coscheduling" / "crd.yaml",
    ]
