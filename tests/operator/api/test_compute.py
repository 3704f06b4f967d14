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

RESERVED: dict[str, bool] = {
    "team": False, "app": False, "example.com/team": False, "azure.workload.identity/use": False,
    "karpenter.sh/do-not-disrupt": False, "prometheus.io/scrape": False, "mykubernetes.io/x": False,
    "cluster-autoscaler.kubernetes.io/safe-to-evict": False, "sidecar.istio.io/inject": False,
    "linkerd.io/inject": False, "kueue.x-k8s.io/podset-required-topology": False, "finetune.device/x": False,
    "finetune.dev/job": True, "sub.finetune.dev/x": True, "app.kubernetes.io/name": True, "kubernetes.io/x": True,
    "k8s.io/x": True, "kueue.x-k8s.io/queue-name": True, "kueue.x-k8s.io/managed": True,
    "cluster-autoscaler.kubernetes.io/safe-to-evict-x": True, "sidecar.istio.io/inject/x": True,
    "sidecar.istio.io/userVolume": True, "inject.istio.io/templates": True, "config.linkerd.io/proxy-image": True,
    "vault.hashicorp.com/agent-inject": True, "consul.hashicorp.com/connect-inject": True, "dapr.io/enabled": True,
    "instrumentation.opentelemetry.io/inject-python": True, "admission.datadoghq.com/enabled": True,
    "iam.amazonaws.com/role": True, "cdi.k8s.io/x": True, "k8s.v1.cni.cncf.io/networks": True,
    "cni.projectcalico.org/ipAddrs": True, "io.kubernetes.cri-o.Devices": True,
    "io.katacontainers.config.hypervisor.path": True, "controller-uid": True, "job-name": True,
    "container.apparmor.security.beta.kubernetes.io/trainer": True, "pod-security.kubernetes.io/enforce": True,
    "azure.workload.identity/inject-proxy-sidecar": True, "azure.workload.identity/skip-containers": True,
    "azure.workload.identity/use/x": True, "v1.multus-cni.io/default-network": True, "kuma.io/sidecar-injection": True,
    "devices.gke.io/x": True, "networking.gke.io/interfaces": True, "gke-gcsfuse/volumes": True,
    "gke-gcsfuses/x": False, "seccomp-profile.kubernetes.cri-o.io/trainer": True, "cpu-quota.crio.io": True,
    "seccomp-profile.kubernetes.cri-o.io": True, "devices.crio.io/trainer": True, "io.containers.trace-syscall": True,
    "crio.iox": False, "io.containerd.x": True, "io.containersx": False,
    "mounts.nri.io/pod": True, "devices.nri.io/container.trainer": True,
    "ulimits.nri.containerd.io/container.trainer": True, "devices.noderesource.dev/container.trainer": True,
    "noderesource.developers.example/x": False, "org.systemd.property.ExecStartPre": True,
    "org.systemd.property.DeviceAllow": True, "org.systemd.team": False, "org.criu.config": True,
    "run.oci.handler": True, "run.oci.keep_original_groups": True, "runs.oci.x": False,
    "dev.gvisor.flag.network": True, "dev.gvisors.x": False, "queue": False, "yunikorn.apache.org/queue": False,
}  # fmt: skip


@pytest.mark.parametrize(("key", "reserved"), RESERVED.items(), ids=RESERVED)
def test_is_reserved_key_by_domain(key: str, reserved: bool) -> None:
    assert is_reserved_key(key) == reserved


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
    assert {key: not await _is_accepted(world, field, key) for key in RESERVED} == RESERVED
