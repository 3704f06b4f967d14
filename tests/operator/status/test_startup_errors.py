"""Texts of the scheduler and the kubelet, as several versions of Kubernetes write them, and the hints for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from tests.support.operator.run_state_table import META, NOW

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.observed.objects import ReasonMessage
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status

if TYPE_CHECKING:
    from tests.support.operator.builders import Body, Builders

SPEC: dict[str, object] = {
    "model": {"uri": "pvc://models/base", "tokenSecretRef": {"name": "hub"}},
    "dataset": {"sources": [{"uri": "s3://b/k"}, {"uri": "pvc://rows/a.jsonl"}]},
    "storage": {"credentialsSecretRef": {"name": "keys"}, "caConfigMapRef": {"name": "ca"}},
    "tracking": {"credentialsSecretRef": {"name": "keys"}},
    "compute": {"modelCacheClaimName": "cache"},
}
NODES = "0/3 nodes are available: "
NO_PREEMPTION = " preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
MOUNT = 'MountVolume.SetUp failed for volume "x" : '


class Text(NamedTuple):
    """A text, the reason that it is recognized as, and a part of the message."""

    text: str
    reason: str
    hint: str


SCHEDULER_TEXTS = [
    Text(f'{NODES}persistentvolumeclaim "cache" not found.{NO_PREEMPTION}', "ClaimNotFound",
         "PersistentVolumeClaim cache (spec.compute.modelCacheClaimName) does not exist"),
    Text('persistentvolumeclaim "rows" not found', "ClaimNotFound", "rows (spec.dataset.sources[1].uri)"),
    Text('persistentvolumeclaim "scratch" not found', "ClaimNotFound", "PersistentVolumeClaim scratch does not exist"),
    Text(f"{NODES}3 Insufficient nvidia.com/gpu.{NO_PREEMPTION}", "GPUUnavailable", "spec.compute.gpusPerNode"),
    Text(f"{NODES}1 Insufficient memory, 2 Insufficient nvidia.com/gpu.", "GPUUnavailable", "nvidia.com/gpu"),
    Text(f"{NODES}3 Insufficient nvidia.com/gpu.shared.", "Unschedulable", ""),
    Text(f"{NODES}3 Insufficient cpu.", "Unschedulable", ""),
    Text('persistentvolumeclaim "cache" is being deleted', "Unschedulable", ""),
    Text("pod has unbound immediate PersistentVolumeClaims.", "Unschedulable", ""),
]  # fmt: skip
MOUNT_TEXTS = [
    Text(f'{MOUNT}secret "hub" not found', "SecretNotFound", "Secret hub (spec.model.tokenSecretRef) does not exist"),
    Text(f'{MOUNT}secrets "hub" not found', "SecretNotFound", "Secret hub"),
    Text(f'{MOUNT}secret "keys" not found', "SecretNotFound",
         "(spec.storage.credentialsSecretRef, spec.tracking.credentialsSecretRef)"),
    Text(f'{MOUNT}configmap "ca" not found', "ConfigMapNotFound", "(spec.storage.caConfigMapRef) does not exist"),
    Text(f'{MOUNT}[references non-existent secret key: AWS_ACCESS_KEY_ID, other]', "KeyNotFound",
         "has no key AWS_ACCESS_KEY_ID. Add the key"),
    Text(f"{MOUNT}references non-existent config key: ca.crt", "KeyNotFound",
         "A ConfigMap (spec.storage.caConfigMapRef) has no key ca.crt"),
    Text('Unable to attach or mount volumes: error processing PVC team/cache: failed to fetch PVC from API server: '
         'persistentvolumeclaims "cache" not found', "ClaimNotFound", "spec.compute.modelCacheClaimName"),
    Text(f"{MOUNT}failed to sync secret cache: timed out waiting for the condition", "ContainerConfigError", ""),
    Text(f'{MOUNT}object "team"/"keys" not registered', "ContainerConfigError", ""),
]  # fmt: skip
CONTAINER_TEXTS = [
    Text('secret "hub" not found', "SecretNotFound", "spec.model.tokenSecretRef"),
    Text('configmap "proxy" not found', "ConfigMapNotFound", "ConfigMap proxy does not exist in this namespace"),
    Text("couldn't find key HF_TOKEN in Secret team/hub", "KeyNotFound",
         "Secret hub (spec.model.tokenSecretRef) has no key HF_TOKEN"),
    Text("couldn't find key url in ConfigMap team/proxy", "KeyNotFound", "ConfigMap proxy has no key url"),
    Text("container has runAsNonRoot and image will run as root", "ContainerConfigError", ""),
]  # fmt: skip


def _check(pod: Body, build: type[Builders], expected: Text, warning: ReasonMessage | None = None) -> None:
    observed = ObservedState(build.job(), (pod,), spec=SPEC, warning=warning)
    status = compute_status(META, FineTuneJobStatus(), observed, NOW)
    message = status.conditions[0].message
    assert (status.phase, status.reason) == ("Pending", expected.reason)
    assert expected.hint in message
    assert message.endswith(expected.text)


@pytest.mark.parametrize("expected", SCHEDULER_TEXTS)
def test_startup_error_of_scheduler_has_reason_and_hint(build: type[Builders], expected: Text) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": expected.text}
    _check(build.pod(conditions=[condition]), build, expected)


@pytest.mark.parametrize("expected", MOUNT_TEXTS)
def test_startup_error_of_volume_has_reason_and_hint(build: type[Builders], expected: Text) -> None:
    pod = build.pod(state={"waiting": {"reason": "ContainerCreating"}})
    _check(pod, build, expected, ReasonMessage("FailedMount", expected.text))


@pytest.mark.parametrize("expected", CONTAINER_TEXTS)
def test_startup_error_of_container_has_reason_and_hint(build: type[Builders], expected: Text) -> None:
    waiting = {"reason": "CreateContainerConfigError", "message": expected.text}
    _check(build.pod(state={"waiting": waiting}), build, expected)
