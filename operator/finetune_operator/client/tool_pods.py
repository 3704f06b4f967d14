"""Pods of the trainer image that a user starts for a plan or a conversation.

They have the Secrets, volumes and nodes of a run, but not its signing key and not the credentials of its tracker. They
are no part of a run: the operator does not see them, and the user needs the right to create pods.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from socket import socket
from typing import Any, cast

from kubernetes.client import ApiException, BatchV1Api, CoreV1Api
from urllib3.exceptions import HTTPError

from finetune_operator.api.labels import (
    JOB_LABEL,
    KUEUE_LABELS,
    TRAINER_CONTAINER,
    VISIBLE_DEVICES_ENV,
)
from finetune_operator.api.objects import Body
from finetune_operator.api.spec import GROUP, RunSpec
from finetune_operator.client.api_errors import Target
from finetune_operator.client.errors import ClientError, Forbidden, WaitTimeout
from finetune_operator.client.raw_api import translate_official_errors
from finetune_operator.resources import security, volumes
from finetune_operator.resources.config_variables import build_config_variables
from finetune_trainer.contract import MANIFEST_ENV

TOOL_LABEL = f"{GROUP}/tool"
"""Label of these pods. Its value is their purpose."""
REQUEST_TIMEOUT_SECONDS = (5, 30)
"""Limits of the connection and of the response."""
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

    def __init__(self, core: CoreV1Api, namespace: str) -> None:
        self.core = core
        self.namespace = namespace
        self._batch = BatchV1Api(core.api_client)

    def find_job(self, run: str | None = None) -> Body | None:
        """Return the Job of a run, or else the newest Job of a run in the namespace."""
        with translate_official_errors(self.core.api_client, Target("list", "jobs", self.namespace)):
            found = self._batch.list_namespaced_job(
                self.namespace, label_selector=JOB_LABEL, _request_timeout=REQUEST_TIMEOUT_SECONDS
            )
        jobs: list[Body] = self.core.api_client.sanitize_for_serialization(found)["items"]
        return max(
            jobs,
            key=lambda job: (job["metadata"]["labels"][JOB_LABEL] == run, job["metadata"]["creationTimestamp"]),
            default=None,
        )

    @contextmanager
    def start(self, body: Body) -> Iterator[str]:
        """Create a pod, yield its name, and delete it at the end, also after an exception or a signal."""
        with self._translate_errors("create"):
            created: Any = self.core.create_namespaced_pod(
                self.namespace, cast(Any, body), _request_timeout=REQUEST_TIMEOUT_SECONDS
            )
        name = str(created.metadata.name)
        try:
            yield name
        finally:
            self._delete(name)

    def wait_for_start(self, name: str, timeout_seconds: float, on_state: Callable[[str], None]) -> None:
        """Wait until the container runs or has ended. `on_state` gets each new reason why it does not run yet.

        Raises `WaitTimeout`, and `ClientError` if the user has to correct something.
        """
        deadline, last_state = time.monotonic() + timeout_seconds, ""
        while True:
            pod = self._get(name)
            if _get_state(pod).get("running") or _read_end(pod):
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
        with self._translate_errors("get", "pods/log"):
            response: Any = self.core.read_namespaced_pod_log(
                name, self.namespace, container=TRAINER_CONTAINER, follow=True, _preload_content=False
            )
            rest = b""
            for chunk in response.stream():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        if rest:
            yield rest.decode(errors="replace")

    def find_end(self, name: str) -> PodEnd | None:
        """Return the end of a pod, or None while it runs."""
        return _read_end(self._get(name))

    def wait_for_end(self, name: str) -> PodEnd:
        """Wait until a pod has ended."""
        while (end := self.find_end(name)) is None:
            time.sleep(_POLL_SECONDS)
        return end

    def open_port(self, name: str, port: int) -> socket:
        """Return a socket that is connected to a port of the pod."""
        from kubernetes.stream import portforward

        try:
            forward = portforward(
                self.core.connect_get_namespaced_pod_portforward, name, self.namespace, ports=str(port)
            )
        except ApiException as error:
            raise _describe_stream_error(error, self.namespace) from None
        connection: socket = forward.socket(port)
        connection.setblocking(True)
        return connection

    @contextmanager
    def _translate_errors(self, verb: str, resource: str = "pods") -> Iterator[None]:
        """Raise the matching `ClientError`. Rights to pods are those of Kubernetes' own roles."""
        with translate_official_errors(self.core.api_client, Target(verb, resource, self.namespace)):
            try:
                yield
            except ApiException as error:
                if error.status != HTTPStatus.FORBIDDEN:
                    raise
                raise _describe_refusal(error, verb, resource, self.namespace) from None

    def _get(self, name: str) -> Body:
        with self._translate_errors("get"):
            pod = self.core.read_namespaced_pod(name, self.namespace, _request_timeout=REQUEST_TIMEOUT_SECONDS)
        body: Body = self.core.api_client.sanitize_for_serialization(pod)
        return body

    def _delete(self, name: str) -> None:
        # The deadline of the pod ends it if this fails.
        with suppress(ApiException, HTTPError, OSError):
            self.core.delete_namespaced_pod(
                name, self.namespace, grace_period_seconds=0, _request_timeout=REQUEST_TIMEOUT_SECONDS
            )

    def _describe_start(self, pod: Body) -> str:
        """Return why the container does not run yet. Raises `ClientError` if it never will."""
        name, status, waiting = pod["metadata"]["name"], pod["status"], _get_state(pod).get("waiting", {})
        reason = str(waiting.get("reason") or status.get("phase", "Pending"))
        if reason in _FATAL_REASONS:
            raise ClientError(f"pod {name} cannot start: {reason}: {waiting.get('message', '')}")
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"{condition.get('reason')}: {condition.get('message')}"
        return self._read_warning(name) or reason

    def _read_warning(self, name: str) -> str:
        """Return the last Event of the type Warning about a pod, such as a Secret that cannot be mounted."""
        with suppress(ApiException):
            events = self.core.list_namespaced_event(
                self.namespace,
                field_selector=f"involvedObject.name={name},type=Warning",
                _request_timeout=REQUEST_TIMEOUT_SECONDS,
            ).items
            return f"{events[-1].reason}: {events[-1].message}" if events else ""
        return ""


def _get_state(pod: Body) -> Body:
    """Return the state of the container: an object with one of `waiting`, `running` and `terminated`."""
    statuses = pod["status"].get("containerStatuses", [])
    return next((each.get("state", {}) for each in statuses if each["name"] == TRAINER_CONTAINER), {})


def _read_end(pod: Body) -> PodEnd | None:
    terminated, reason = _get_state(pod).get("terminated"), pod["status"].get("reason", "")
    if terminated:
        return PodEnd(terminated["exitCode"], reason or terminated.get("reason", ""))
    phase = pod["status"].get("phase")
    return PodEnd(int(phase == "Failed"), reason) if phase in ("Failed", "Succeeded") else None


def _describe_refusal(error: ApiException, verb: str, resource: str, namespace: str) -> Forbidden:
    """Distinguish a missing right from a pod that a quota or a policy refuses."""
    body = str(error.body or "")
    if " cannot " in body:
        return _describe_missing_right(verb, resource, namespace)
    return Forbidden(f"namespace {namespace} refuses the pod: {_read_message(body)}")


def _describe_missing_right(verb: str, resource: str, namespace: str) -> Forbidden:
    role = "view" if verb in ("get", "list") else "edit"
    message = f"you may not {verb} {resource} in namespace {namespace}"
    return Forbidden(f"{message}; Kubernetes' ClusterRole {role} has this right, bind it to you in the namespace")


def _read_message(body: str) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body


def _describe_stream_error(error: ApiException, namespace: str) -> ClientError:
    reason = str(error.reason)
    if " 403 " in reason:
        return _describe_missing_right("create", "pods/portforward", namespace)
    return ClientError(f"the port-forward to the pod failed: {reason}")
