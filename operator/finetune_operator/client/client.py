"""The client: submits runs, follows them, and reads their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client import CoreV1Api, CustomObjectsApi

from finetune_operator.api import PLURAL, FineTuneJob
from finetune_operator.api.schedule import SCHEDULE_PLURAL, FineTuneSchedule
from finetune_operator.api.sweep import SWEEP_PLURAL, FineTuneSweep
from finetune_operator.client.connection import connect
from finetune_operator.client.resources import Resource
from finetune_operator.client.results import ResultStore

AnyKind = FineTuneJob | FineTuneSchedule | FineTuneSweep
Manifest = str | Path | Mapping[str, Any]
"""Path of a YAML file, or an object as a mapping."""


@dataclass(frozen=True)
class Event:
    """An Event about an object."""

    time: str
    type: str
    """`Normal` or `Warning`."""
    reason: str
    message: str
    count: int = 1


class Client:
    """A client of one namespace. All methods raise `ClientError`.

    Args:
        namespace: the namespace; by default that of the kubeconfig's context.
        context: the context of the kubeconfig; by default the current one.
        kubeconfig: the kubeconfig file; by default that of `$KUBECONFIG`, `~/.kube/config`, or a pod's service account.
        endpoint: the address of the S3 store as this machine reaches it; by default that of each run's spec.
    """

    def __init__(
        self,
        namespace: str | None = None,
        *,
        context: str | None = None,
        kubeconfig: Path | None = None,
        endpoint: str | None = None,
    ) -> None:
        self._connection = connect(context, kubeconfig)
        self._endpoint = endpoint
        self.namespace = namespace or self._connection.namespace
        """The namespace of all methods that do not name another one."""
        custom_objects = CustomObjectsApi(self._connection.api_client)
        self.core = CoreV1Api(self._connection.api_client)
        """The official client of pods and Events."""
        self.jobs = Resource(custom_objects, FineTuneJob, PLURAL, self.namespace)
        """FineTuneJobs."""
        self.schedules = Resource(custom_objects, FineTuneSchedule, SCHEDULE_PLURAL, self.namespace)
        """FineTuneSchedules."""
        self.sweeps = Resource(custom_objects, FineTuneSweep, SWEEP_PLURAL, self.namespace)
        """FineTuneSweeps."""

    def submit(self, manifest: Manifest, *, dry_run: bool = False) -> AnyKind:
        """Create the object of a manifest: a FineTuneJob, a FineTuneSchedule or a FineTuneSweep.

        A manifest of another namespace than the client's is an error. Raises `InvalidManifest` and `ObjectExists`.
        """
        raise NotImplementedError

    def wait(
        self,
        name: str,
        *,
        timeout_seconds: float | None = None,
        on_change: Callable[[FineTuneJob], None] | None = None,
    ) -> FineTuneJob:
        """Wait until a run is complete, failed, cancelled or suspended, and return it.

        Survives a restart of the API server and closed watches. Raises `WaitTimeout`, and `ObjectNotFound` if the
        FineTuneJob is deleted meanwhile.
        """
        raise NotImplementedError

    def events(self, name: str, kind: str = "FineTuneJob") -> list[Event]:
        """Return the Events about an object, the oldest first."""
        raise NotImplementedError

    def metrics(self, name: str) -> dict[str, float]:
        """Return the metrics of a run: those of its result, or the last reported losses while it runs."""
        raise NotImplementedError

    def report(self, name: str) -> bytes:
        """Return the HTML report of a run. Raises `ResultUnavailable` if it has none yet."""
        raise NotImplementedError

    def logs(self, name: str, *, follow: bool = False, pod: str | None = None) -> Iterator[str]:
        """Yield the lines of a run's log: from its newest pod, or from S3 when the pods are gone.

        With `follow`, the lines of a pod are yielded as they are written, also those of the pods that follow after an
        interruption, until the run ends.
        """
        raise NotImplementedError

    def suspend(self, name: str) -> FineTuneJob:
        """Suspend a run: it saves a checkpoint and its pods end."""
        return self.jobs.patch_spec(name, {"suspend": True})

    def resume(self, name: str) -> FineTuneJob:
        """Resume a suspended run. Also removes a `suspendAtStep` that it has reached."""
        raise NotImplementedError

    def cancel(self, name: str) -> FineTuneJob:
        """End a run for good. Cancelling cannot be undone."""
        return self.jobs.patch_spec(name, {"cancel": True})

    def result_store(self, job: FineTuneJob) -> ResultStore:
        """Return the store with the result of a run, which is read with the credentials of this machine."""
        return ResultStore.for_job(job, self._endpoint)


def wait_condition_of(job: FineTuneJob) -> str | None:
    """Return the condition that ends `Client.wait`: `Complete`, `Failed`, `Cancelled` or `Suspended`, or None.

    A condition of an older generation of the spec does not count.
    """
    raise NotImplementedError
