"""Pods of the trainer image that a user starts for a plan or a conversation.

They have the Secrets, volumes and nodes of a run, but not its signing key and not the credentials of its tracker. They
are no part of a run: the operator does not see them, and the user needs the right to create pods.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from socket import socket
from typing import TYPE_CHECKING, Any

from finetune_operator.api.labels import JOB_LABEL, KUEUE_LABELS, TRAINER_CONTAINER, VISIBLE_DEVICES_ENV
from finetune_operator.api.spec import GROUP, RunSpec
from finetune_operator.client.api_errors import Target, build_missing_right_error
from finetune_operator.client.api_server import ApiServer, Body, Collection, Request
from finetune_operator.client.errors import ClientError, Forbidden, WaitTimeout
from finetune_operator.client.pods import PodReader, get_container_state
from finetune_operator.resources import security, volumes
from finetune_operator.resources.config_variables import build_config_variables
from finetune_trainer.contract import MANIFEST_ENV

if TYPE_CHECKING:
    from kubernetes.client import ApiException

TOOL_LABEL = f"{GROUP}/tool"
"""Label of these pods. Its value is their purpose."""
_POLL_SECONDS = 1.0
_FATAL_REASONS = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")
"""Reasons of a waiting container that need a correction by the user."""
_GRACE_SECONDS = 5


@dataclass(frozen=True)
class ToolPod:
    """What a pod runs."""

    purpose: str
    arguments: Sequence[str]
    """Command of `finetune-trainer` with its options."""
    image: str
    manifest: str
    """Text of the manifest, which the command reads from `$FINETUNE_MANIFEST`."""
    deadline_seconds: int
    """Time after which the cluster ends the pod, if this client was killed and cannot delete it."""
    gpus: int = 0


@dataclass(frozen=True)
class PodEnd:
    """The end of a pod."""

    exit_code: int
    reason: str = ""
    """Reason of Kubernetes, such as `OOMKilled` or `DeadlineExceeded`."""


def build_tool_pod(spec: RunSpec, labels: Mapping[str, str], tool: ToolPod) -> Body:
    """Return the pod. `labels` are those of the run, of which Kueue's are copied."""
    reduced = _drop_unused_access(spec)
    compute, mounts = reduced.compute, volumes.build_mounts(reduced)
    pod_spec: Body = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": tool.deadline_seconds,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security.build_pod_security_context(),
        "containers": [_build_container(reduced, tool, [mount for mount, _ in mounts])],
        "volumes": [{"name": mount["name"], **source} for mount, source in mounts],
        "nodeSelector": dict(compute.node_selector),
        "tolerations": [toleration.to_json() for toleration in compute.tolerations],
        "imagePullSecrets": [secret.to_json() for secret in compute.image_pull_secrets],
        "serviceAccountName": compute.service_account_name,
        "priorityClassName": compute.priority_class_name,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"finetune-{tool.purpose}-",
            "labels": {TOOL_LABEL: tool.purpose, **{key: labels[key] for key in KUEUE_LABELS if key in labels}},
        },
        "spec": {key: value for key, value in pod_spec.items() if value not in (None, [], {})},
    }


def _drop_unused_access(spec: RunSpec) -> RunSpec:
    """Return the spec without what only training and publishing need. The cache may be a volume of another node."""
    return spec.model_copy(
        update={
            "tracking": None,
            "output": spec.output.model_copy(update={"signing": None}),
            "compute": spec.compute.model_copy(update={"model_cache_claim_name": None}),
        }
    )


def _build_container(spec: RunSpec, tool: ToolPod, mounts: list[Body]) -> Body:
    compute = spec.compute
    # The user may create any pod, so the identity of the node is not hidden from this one.
    environment = build_config_variables(MANIFEST_ENV, tool.manifest) | volumes.build_environment(spec, True)
    if not tool.gpus:
        environment[VISIBLE_DEVICES_ENV] = "none"
    gpus = {compute.gpu_resource: str(tool.gpus)} if tool.gpus else {}
    requests, limits = (_drop_devices(each) for each in (compute.resources.requests, compute.resources.limits))
    return {
        "name": TRAINER_CONTAINER,
        "image": tool.image,
        "args": list(tool.arguments),
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": {
            "requests": volumes.build_storage_request(compute) | requests | gpus,
            "limits": limits | gpus,
        },
        "volumeMounts": mounts,
        "securityContext": security.build_container_security_context(),
    }


def _drop_devices(quantities: Mapping[str, Any]) -> Body:
    """Return the quantities without GPUs and other devices, whose names have a domain."""
    return {name: quantity for name, quantity in quantities.items() if "/" not in name}


class ToolPods:
    """The pods of a namespace. All methods raise `ClientError`."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.namespace = namespace
        self._server = server
        self._reader = PodReader(server, namespace)
        self._pods = Collection("/api/v1", "pods", namespace)
        self._jobs = Collection("/apis/batch/v1", "jobs", namespace)

    def find_job(self, run: str | None = None) -> Body | None:
        """Return the Job of a run, or else the newest Job of a run in the namespace."""
        jobs: list[Body] = self._server.send(Request("list", self._jobs, query={"labelSelector": JOB_LABEL}))["items"]
        return max(
            jobs,
            key=lambda job: (job["metadata"]["labels"][JOB_LABEL] == run, job["metadata"]["creationTimestamp"]),
            default=None,
        )

    @contextmanager
    def start(self, body: Body) -> Iterator[str]:
        """Create a pod, yield its name, and delete it at the end, also after an exception or a signal."""
        created = self._server.send(Request("create", self._pods, body=body))
        name = str(created["metadata"]["name"])
        try:
            yield name
        finally:
            with suppress(ClientError):  # the deadline of the pod ends it
                self._server.send(Request("delete", self._pods, name, query={"gracePeriodSeconds": "0"}))

    def wait_for_start(self, name: str, timeout_seconds: float, on_state: Callable[[str], None]) -> None:
        """Wait until the container runs or has ended. `on_state` gets each new reason why it does not run yet.

        Raises `WaitTimeout`, and `ClientError` if the user has to correct something.
        """
        deadline, last_state = time.monotonic() + timeout_seconds, ""
        while True:
            pod = self._reader.get_pod(name)
            if get_container_state(pod, TRAINER_CONTAINER).get("running") or _read_end(pod):
                return
            state = self._describe_start(pod)
            if state != last_state:
                on_state(f"pod {name}: {state}")
            last_state = state
            if time.monotonic() > deadline:
                raise WaitTimeout(f"pod {name} has not started after {timeout_seconds:.0f} s: {state}")
            time.sleep(_POLL_SECONDS)

    def follow_log(self, name: str) -> Iterator[str]:
        """Yield the lines of the log until the container ends."""
        yield from self._reader.follow_log(self._reader.get_pod(name), lambda: True)

    def find_end(self, name: str) -> PodEnd | None:
        """Return the end of a pod, or None while it runs."""
        return _read_end(self._reader.get_pod(name))

    def wait_for_end(self, name: str) -> PodEnd:
        """Wait until a pod has ended."""
        while (end := self.find_end(name)) is None:
            time.sleep(_POLL_SECONDS)
        return end

    def open_port(self, name: str, port: int) -> socket:
        """Return a socket that is connected to a port of the pod."""
        from kubernetes.client import ApiException, CoreV1Api
        from kubernetes.stream import portforward

        forward_port = CoreV1Api(self._server.api_client).connect_get_namespaced_pod_portforward
        try:
            forward = portforward(forward_port, name, self.namespace, ports=str(port))
        except ApiException as error:
            raise _describe_stream_error(error, self.namespace) from None
        connection: socket = forward.socket(port)
        connection.setblocking(True)
        return connection

    def _describe_start(self, pod: Body) -> str:
        """Return why the container does not run yet. Raises `ClientError` if it never will."""
        name, status = pod["metadata"]["name"], pod["status"]
        waiting = get_container_state(pod, TRAINER_CONTAINER).get("waiting") or {}
        reason = str(waiting.get("reason") or status.get("phase", "Pending"))
        if reason in _FATAL_REASONS:
            raise ClientError(f"pod {name} cannot start: {reason}: {waiting.get('message', '')}")
        for condition in status.get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"{condition.get('reason')}: {condition.get('message')}"
        return self._read_warning(name) or reason

    def _read_warning(self, name: str) -> str:
        """Return the last Event of the type Warning about a pod, such as a Secret that cannot be mounted."""
        with suppress(Forbidden):
            warnings = [event for event in self._reader.list_events(name, "Pod") if event.type == "Warning"]
            return f"{warnings[-1].reason}: {warnings[-1].message}" if warnings else ""
        return ""


def _read_end(pod: Body) -> PodEnd | None:
    terminated, reason = get_container_state(pod, TRAINER_CONTAINER).get("terminated"), pod["status"].get("reason", "")
    if terminated:
        return PodEnd(terminated["exitCode"], reason or terminated.get("reason", ""))
    phase = pod["status"].get("phase")
    return PodEnd(int(phase == "Failed"), reason) if phase in ("Failed", "Succeeded") else None


def _describe_stream_error(error: ApiException, namespace: str) -> ClientError:
    """Describe the error of a port-forward, whose status is a part of its reason."""
    target = Target("create", "pods/portforward", namespace)
    reason = str(error.reason)
    if " 403 " in reason:
        return build_missing_right_error(target)
    return ClientError(f"the port-forward to the pod failed: {reason}")
