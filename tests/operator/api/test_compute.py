"""Reserved keys of labels and annotations, which neither the API server nor the operator accepts from users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.namespace_harness import RequestRejected

from finetune_operator.api import FineTuneJob
from finetune_operator.api.compute import is_reserved_key
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders
    from tests.support.operator.namespace_harness import NamespaceHarness

Body = dict[str, Any]

FREE_KEYS = [
    "team",
    "app",
    "example.com/team",
    "azure.workload.identity/use",
    "karpenter.sh/do-not-disrupt",
    "prometheus.io/scrape",
    "mykubernetes.io/x",
    "cluster-autoscaler.kubernetes.io/safe-to-evict",
    "sidecar.istio.io/inject",
    "linkerd.io/inject",
    "kueue.x-k8s.io/podset-required-topology",
    "finetune.device/x",
    "gke-gcsfuses/x",
    "crio.iox",
    "io.containersx",
    "noderesource.developers.example/x",
    "org.systemd.team",
    "runs.oci.x",
    "dev.gvisors.x",
    "queue",
    "yunikorn.apache.org/queue",
]
RESERVED_KEYS = [
    "finetune.dev/job",
    "sub.finetune.dev/x",
    "app.kubernetes.io/name",
    "kubernetes.io/x",
    "k8s.io/x",
    "kueue.x-k8s.io/queue-name",
    "kueue.x-k8s.io/managed",
    "cluster-autoscaler.kubernetes.io/safe-to-evict-x",
    "sidecar.istio.io/inject/x",
    "sidecar.istio.io/userVolume",
    "inject.istio.io/templates",
    "config.linkerd.io/proxy-image",
    "vault.hashicorp.com/agent-inject",
    "consul.hashicorp.com/connect-inject",
    "dapr.io/enabled",
    "instrumentation.opentelemetry.io/inject-python",
    "admission.datadoghq.com/enabled",
    "iam.amazonaws.com/role",
    "cdi.k8s.io/x",
    "k8s.v1.cni.cncf.io/networks",
    "cni.projectcalico.org/ipAddrs",
    "io.kubernetes.cri-o.Devices",
    "io.katacontainers.config.hypervisor.path",
    "controller-uid",
    "job-name",
    "container.apparmor.security.beta.kubernetes.io/trainer",
    "pod-security.kubernetes.io/enforce",
    "azure.workload.identity/inject-proxy-sidecar",
    "azure.workload.identity/skip-containers",
    "azure.workload.identity/use/x",
    "v1.multus-cni.io/default-network",
    "kuma.io/sidecar-injection",
    "devices.gke.io/x",
    "networking.gke.io/interfaces",
    "gke-gcsfuse/volumes",
    "seccomp-profile.kubernetes.cri-o.io/trainer",
    "cpu-quota.crio.io",
    "seccomp-profile.kubernetes.cri-o.io",
    "devices.crio.io/trainer",
    "io.containers.trace-syscall",
    "io.containerd.x",
    "mounts.nri.io/pod",
    "devices.nri.io/container.trainer",
    "ulimits.nri.containerd.io/container.trainer",
    "devices.noderesource.dev/container.trainer",
    "org.systemd.property.ExecStartPre",
    "org.systemd.property.DeviceAllow",
    "org.criu.config",
    "run.oci.handler",
    "run.oci.keep_original_groups",
    "dev.gvisor.flag.network",
]


@pytest.mark.parametrize("key", FREE_KEYS)
def test_is_reserved_key_other_domain_is_free(key: str) -> None:
    assert not is_reserved_key(key)


@pytest.mark.parametrize("key", RESERVED_KEYS)
def test_is_reserved_key_domain_of_cluster_software_is_reserved(key: str) -> None:
    assert is_reserved_key(key)


def _build_job(build: type[Builders], spec: Body, **meta: Any) -> Body:
    return build_job(FineTuneJob.model_validate(build.finetunejob(spec=spec, **meta)), Settings())


def test_job_labels_take_only_kueue_queue_and_priority(build: type[Builders]) -> None:
    kueue_labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "urgent"}
    other_labels = {
        "kueue.x-k8s.io/prebuilt-workload-name": "somebody-elses", "kueue.x-k8s.io/multikueue-origin": "x",
        "kueue.x-k8s.io/managed": "false", "team": "nlp", "finetune.dev/job": "other",
    }  # fmt: skip
    operator_labels = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": "bot"}
    assert (
        _build_job(build, {}, labels=kueue_labels | other_labels)["metadata"]["labels"]
        == kueue_labels | operator_labels
    )


def test_pod_metadata_user_keys_never_override_operator_keys(build: type[Builders]) -> None:
    labels = {"finetune.dev/job": "x", "finetune.dev/y": "x", "app.kubernetes.io/managed-by": "x", "job-name": "x"}
    annotations = {
        "container.apparmor.security.beta.kubernetes.io/trainer": "unconfined",
        "sidecar.istio.io/inject": "false",
    }
    compute = {
        "podLabels": {**labels, "batch.kubernetes.io/job-name": "x", "team": "nlp"},
        "podAnnotations": annotations,
    }
    meta = _build_job(build, {"compute": compute})["spec"]["template"]["metadata"]
    operator_labels = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": "bot"}
    assert meta["labels"] == {"team": "nlp", **operator_labels}
    assert meta["annotations"] == {"sidecar.istio.io/inject": "false"}


async def _is_accepted(world: NamespaceHarness, field: str, key: str) -> bool:
    try:
        await world.create_finetunejob(spec={"compute": {field: {key: "x"}}})
    except RequestRejected:
        return False
    await world.delete("finetunejobs")
    return True


@pytest.mark.cluster
@pytest.mark.parametrize("field", ["podLabels", "podAnnotations"])
async def test_api_server_rejects_same_reserved_keys(world: NamespaceHarness, field: str) -> None:
    keys = [*FREE_KEYS, *RESERVED_KEYS]
    assert [key for key in keys if not await _is_accepted(world, field, key)] == RESERVED_KEYS
