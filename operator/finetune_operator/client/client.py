"""The client: submits runs, follows them, and reads their results."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune_operator.api import KIND, PLURAL, FineTuneJob
from finetune_operator.api.schedule import SCHEDULE_KIND, SCHEDULE_PLURAL, FineTuneSchedule
from finetune_operator.api.sweep import SWEEP_KIND, SWEEP_PLURAL, FineTuneSweep
from finetune_operator.client.api_server import ApiServer
from finetune_operator.client.connection import connect
from finetune_operator.client.errors import ClientError, ResultUnavailable
from finetune_operator.client.following import JobFollower, retry_during_outage, wait_condition_of
from finetune_operator.client.manifests import Manifest, read_manifest
from finetune_operator.client.pods import Event, PodReader
from finetune_operator.client.resources import Resource
from finetune_operator.client.results import ResultStore
from finetune_operator.client.states import check_active, check_resumable
from finetune_operator.client.summaries import get_phase
from finetune_trainer.contract.base import DNS_LABEL_PATTERN
from finetune_trainer.records.manifest import REPORT_NAME
from finetune_trainer.telemetry.run_log import LOG_NAME
from finetune_trainer.text import to_one_line

AnyKind = FineTuneJob | FineTuneSchedule | FineTuneSweep
_REJECTED_FOLDER = "/.rejected/"
_POLL_SECONDS = 2.0
_NAMESPACE = re.compile(DNS_LABEL_PATTERN)


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
        if namespace is not None and not _NAMESPACE.fullmatch(namespace):
            raise ClientError(f"{to_one_line(repr(namespace), 100)} is not a name of a namespace")
        self._connection = connect(context, kubeconfig)
        self._endpoint = endpoint
        self.namespace = namespace or self._connection.namespace
        """The namespace of all methods that do not name another one."""
        self.server = server = ApiServer(self._connection.api_client)
        """The API server, for requests that this class does not have."""
        self._pods = PodReader(server, self.namespace)
        self.jobs = Resource(server, FineTuneJob, PLURAL, self.namespace)
        """FineTuneJobs."""
        self.schedules = Resource(server, FineTuneSchedule, SCHEDULE_PLURAL, self.namespace)
        """FineTuneSchedules."""
        self.sweeps = Resource(server, FineTuneSweep, SWEEP_PLURAL, self.namespace)
        """FineTuneSweeps."""

    def submit(self, manifest: Manifest, *, dry_run: bool = False) -> AnyKind:
        """Create the object of a manifest: a FineTuneJob, a FineTuneSchedule or a FineTuneSweep.

        A manifest of another namespace than the client's is an error. Raises `InvalidManifest` and `ObjectExists`.
        """
        body = read_manifest(manifest, self.namespace)
        resources: dict[str, Resource[Any]] = {
            KIND: self.jobs,
            SCHEDULE_KIND: self.schedules,
            SWEEP_KIND: self.sweeps,
        }
        created: AnyKind = resources[body["kind"]].create(body, dry_run=dry_run)
        return created

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
        for job in JobFollower(self.jobs, name, timeout_seconds):
            if on_change:
                on_change(job)
            if wait_condition_of(job):
                return job
        raise AssertionError("a follower does not end")

    def events(self, name: str, kind: str = KIND) -> list[Event]:
        """Return the Events about an object, the oldest first."""
        return self._pods.list_events(name, kind)

    def metrics(self, name: str) -> dict[str, float]:
        """Return the metrics of a run: those of its result, or the last reported losses while it runs."""
        status = self.jobs.get(name).status
        if status and status.result:
            return dict(status.result.metrics)
        progress = status.progress if status else None
        losses = {"loss": progress.loss, "evalLoss": progress.eval_loss} if progress else {}
        return {metric: value for metric, value in losses.items() if value is not None}

    def report(self, name: str) -> bytes:
        """Return the HTML report of a run. Raises `ResultUnavailable` if it has none yet.

        The report of an adapter that `evaluation.gate` has rejected has no digest to compare it with.
        """
        job = self.jobs.get(name)
        result, log_uri = (job.status.result, job.status.log_uri) if job.status else (None, None)
        store = self.result_store(job)
        if result:
            return store.read_report(store.read_result(result.adapter_uri, result.digest))
        if log_uri and _REJECTED_FOLDER in log_uri:
            return store.read_object(f"{log_uri.rpartition('/')[0]}/{REPORT_NAME}")
        raise ResultUnavailable(f"FineTuneJob {name} has no report: its phase is {get_phase(job)}")

    def logs(self, name: str, *, follow: bool = False, pod: str | None = None) -> Iterator[str]:
        """Yield the lines of a run's log: from its newest pod, or from S3 when the pods are gone.

        With `follow`, the lines of a pod are yielded as they are written, also those of the pods that follow after an
        interruption, until the run ends.
        """
        body = self._pods.get_pod(pod) if pod else None
        if body:
            yield from self._pods.follow_log(body, lambda: True) if follow else self._pods.read_log(body)
        elif follow:
            yield from self._follow_logs(name)
        else:
            yield from self._read_log(name)

    def _read_log(self, name: str) -> Iterator[str]:
        job = self.jobs.get(name)
        pod = self._pods.find_log_pod(name)
        yield from self._pods.read_log(pod) if pod else self._read_stored_log(job)

    def _follow_logs(self, name: str) -> Iterator[str]:
        """Yield the lines of all pods from the newest one on, until the run ends."""
        followed: set[str] = set()
        self.jobs.get(name)  # an API server that never responds is an error at once
        while True:
            # Before the pods, so that the last pod of an ended run is not missed.
            job = retry_during_outage(lambda: self.jobs.get(name))
            pod = retry_during_outage(lambda: self._pods.find_log_pod(name))
            if pod and pod["metadata"]["name"] not in followed:
                followed.add(pod["metadata"]["name"])
                yield from self._pods.follow_log(pod, lambda: self._is_active(name))
            elif wait_condition_of(job):
                if not followed:
                    yield from self._read_stored_log(job)
                return
            else:
                time.sleep(_POLL_SECONDS)

    def _is_active(self, name: str) -> bool:
        return wait_condition_of(retry_during_outage(lambda: self.jobs.get(name))) is None

    def _read_stored_log(self, job: FineTuneJob) -> list[str]:
        status = job.status
        uri = status.log_uri if status else None
        if uri is None and status and status.result:
            uri = f"{status.result.adapter_uri.rstrip('/')}/{LOG_NAME}"
        if uri is None:
            message = f"FineTuneJob {job.metadata.name} has no pod and no stored log: its phase is {get_phase(job)}"
            raise ResultUnavailable(message)
        return self.result_store(job).read_text(uri).split("\n")

    def suspend(self, name: str) -> FineTuneJob:
        """Suspend a run: it saves a checkpoint and its pods end. Raises `InvalidState` if it has ended."""
        check_active(self.jobs.get(name))
        return self.jobs.patch_spec(name, {"suspend": True})

    def resume(self, name: str) -> FineTuneJob:
        """Resume a suspended run. Also removes a `suspendAtStep` that it has reached. Raises `InvalidState` if it is
        not suspended, or has exhausted its budget."""
        job = self.jobs.get(name)
        check_resumable(job)
        reached = job.status.step_result.step if job.status and job.status.step_result else 0
        changes: dict[str, Any] = {"suspend": False}
        if job.spec.suspend_at_step is not None and reached >= job.spec.suspend_at_step:
            changes["suspendAtStep"] = None
        return self.jobs.patch_spec(name, changes)

    def cancel(self, name: str) -> FineTuneJob:
        """End a run for good. Cancelling cannot be undone. Raises `InvalidState` if it has ended."""
        check_active(self.jobs.get(name))
        return self.jobs.patch_spec(name, {"cancel": True})

    def result_store(self, job: FineTuneJob) -> ResultStore:
        """Return the store with the result of a run, which is read with the credentials of this machine."""
        return ResultStore.for_job(job, self._endpoint)
