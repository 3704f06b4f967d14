"""Pods, logs and Events of a FineTuneJob."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.labels import JOB_LABEL, MODEL_CACHE_CONTAINER, TRAINER_CONTAINER
from finetune_operator.client.api_server import ApiServer, Body, Collection, Request
from finetune_operator.client.errors import ClusterUnavailable, LoginRequired, ObjectNotFound
from finetune_operator.client.following import MAX_OUTAGE_SECONDS, retry_during_outage

_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
_POLL_SECONDS = 1.0
_LOG_SILENCE_SECONDS = 600
"""Time without a line after which a followed log is requested again, in case its connection is dead."""


@dataclass(frozen=True)
class Event:
    """An Event about an object."""

    time: str
    type: str
    """`Normal` or `Warning`."""
    reason: str
    message: str
    count: int = 1


@dataclass
class LogPosition:
    """How far a container's log has been read."""

    pod: str
    container: str
    last_time: str = ""
    """Time of the last line, as the kubelet writes it: RFC 3339 with nine digits."""


class PodReader:
    """Reads pods and Events of a namespace. All methods raise `ClientError`."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server = server
        self._pods = Collection("/api/v1", "pods", namespace)
        self._events = Collection("/api/v1", "events", namespace)

    def list_events(self, name: str, kind: str) -> list[Event]:
        """Return the Events about an object, the oldest first."""
        query = {"fieldSelector": f"involvedObject.kind={kind},involvedObject.name={name}"}
        items = self._server.send(Request("list", self._events, query=query)).get("items") or []
        return sorted((_parse_event(item) for item in items), key=lambda event: event.time)

    def find_log_pod(self, job_name: str) -> Body | None:
        """Return the newest pod of a run, or that of rank 0 if it has several nodes."""
        query = {"labelSelector": f"{JOB_LABEL}={job_name}"}
        pods = self._server.send(Request("list", self._pods, query=query)).get("items") or []
        return max((pod for pod in pods if _is_rank_zero(pod)), key=_get_creation, default=None)

    def get_pod(self, name: str) -> Body:
        """Return a pod. Raises `ObjectNotFound`."""
        return self._server.send(Request("get", self._pods, name))

    def read_log(self, pod: Body) -> Iterator[str]:
        """Yield the lines that the current container of a pod has written until now."""
        container = _find_started_container(pod)
        name = pod["metadata"]["name"]
        if container is None:
            raise ObjectNotFound(f"pod {name} has not started, so it has no log: {_describe_waiting(pod)}")
        yield from self._stream(LogPosition(name, container), follow=False)

    def follow_log(self, pod: Body, is_wanted: Callable[[], bool]) -> Iterator[str]:
        """Yield the lines of a pod as they are written, until it has ended or `is_wanted` returns false."""
        name = pod["metadata"]["name"]
        followed: set[str] = set()
        while True:
            container = _find_started_container(pod)
            if container and container not in followed:
                yield from self._follow_container(LogPosition(name, container))
                followed.add(container)
            if TRAINER_CONTAINER in followed or _has_ended(pod) or not is_wanted():
                return
            time.sleep(_POLL_SECONDS)
            try:
                pod = retry_during_outage(lambda: self.get_pod(name))
            except ObjectNotFound:
                return

    def _follow_container(self, position: LogPosition) -> Iterator[str]:
        """Follow a log across interrupted connections."""
        last_response_time = time.monotonic()
        while True:
            try:
                for line in self._stream(position, follow=True):
                    last_response_time = time.monotonic()
                    yield line
                if _has_container_ended(self.get_pod(position.pod), position.container):
                    return
                last_response_time = time.monotonic()
            except ObjectNotFound:
                return
            except LoginRequired:
                raise
            except ClusterUnavailable:
                if time.monotonic() - last_response_time > MAX_OUTAGE_SECONDS:
                    raise
            time.sleep(_POLL_SECONDS)

    def _stream(self, position: LogPosition, *, follow: bool) -> Iterator[str]:
        query = {"container": position.container, "timestamps": "true"}
        if follow:
            query["follow"] = "true"
        if position.last_time:
            query["sinceTime"] = position.last_time.partition(".")[0].removesuffix("Z") + "Z"
        request = Request("get", self._pods, position.pod, "log", query, read_timeout_seconds=_LOG_SILENCE_SECONDS)
        resumed_after = position.last_time
        for line in self._server.stream_lines(request):
            written_time, _, text = line.decode(errors="replace").partition(" ")
            if written_time > resumed_after:
                position.last_time = written_time
                yield text


def _is_rank_zero(pod: Body) -> bool:
    annotations: Body = pod["metadata"].get("annotations") or {}
    return str(annotations.get(_INDEX_ANNOTATION, "0")) == "0"


def _get_creation(pod: Body) -> tuple[str, str]:
    return str(pod["metadata"].get("creationTimestamp")), str(pod["metadata"]["name"])


def get_container_state(pod: Body, container: str) -> Body:
    """Return the state of a container: an object with one of `waiting`, `running` and `terminated`, or an empty one."""
    status = pod.get("status") or {}
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    found: Body = next((each.get("state") or {} for each in statuses if each.get("name") == container), {})
    return found


def _find_started_container(pod: Body) -> str | None:
    """Return the trainer's container if it has started, or else the one that fills the model cache if it has."""
    for container in (TRAINER_CONTAINER, MODEL_CACHE_CONTAINER):
        if get_container_state(pod, container).keys() & {"running", "terminated"}:
            return container
    return None


def _has_container_ended(pod: Body, container: str) -> bool:
    return "terminated" in get_container_state(pod, container) or _has_ended(pod)


def _has_ended(pod: Body) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _describe_waiting(pod: Body) -> str:
    waiting: Any = get_container_state(pod, TRAINER_CONTAINER).get("waiting") or {}
    phase = (pod.get("status") or {}).get("phase", "Pending")
    return str(waiting.get("reason") or phase)


def _parse_event(body: Body) -> Event:
    series = body.get("series") or {}
    event_time = series.get("lastObservedTime") or body.get("lastTimestamp") or body.get("eventTime")
    return Event(
        time=str(event_time or body["metadata"].get("creationTimestamp") or ""),
        type=str(body.get("type") or ""),
        reason=str(body.get("reason") or ""),
        message=str(body.get("message") or ""),
        count=int(series.get("count") or body.get("count") or 1),
    )
