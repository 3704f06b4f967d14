"""Requests to the API server for the objects of FineTuneJobs. Objects are plain dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple, TypedDict

import msgspec

from finetune_operator.api import GROUP, PLURAL, VERSION
from finetune_operator.api.labels import JOB_LABEL, TASK_LABEL
from finetune_operator.api.objects import Body
from finetune_operator.api.schedule import SCHEDULE_PLURAL
from finetune_operator.api.sweep import SWEEP_PLURAL
from finetune_operator.kube.cache import parse_resource_version
from finetune_operator.kube.transport import ApiError, Transport, decode_response
from finetune_operator.observed import workload


class NotLeaderError(Exception):
    """This replica is no longer the leader. The request was not sent."""


class ApiResource(NamedTuple):
    """A resource of the API server."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    label_selector: str = ""
    """Selects the objects that are listed and watched."""

    def build_path(self, namespace: str | None) -> str:
        """Return the path of the collection in a namespace, or in all namespaces."""
        group_path = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return f"{group_path}/namespaces/{namespace}/{self.plural}" if namespace else f"{group_path}/{self.plural}"


class _ListMetadata(TypedDict, total=False):
    resourceVersion: str


class _ListResponse(TypedDict):
    metadata: _ListMetadata
    items: list[msgspec.Raw]


class ObjectList(NamedTuple):
    """All objects of a resource in a namespace or in the cluster."""

    items: list[msgspec.Raw]
    """Undecoded, because only a few of many objects are needed."""
    resource_version: int
    """Minimum resource version of the list."""


_LIST_DECODER = msgspec.json.Decoder(_ListResponse)

FINETUNEJOBS = ApiResource(GROUP, VERSION, PLURAL)
FINETUNESCHEDULES = ApiResource(GROUP, VERSION, SCHEDULE_PLURAL)
FINETUNESWEEPS = ApiResource(GROUP, VERSION, SWEEP_PLURAL)
JOBS = ApiResource("batch", "v1", "jobs", JOB_LABEL)
PODS = ApiResource("", "v1", "pods", JOB_LABEL)
SERVICES = ApiResource("", "v1", "services")
EVENTS = ApiResource("", "v1", "events")
WORKLOADS = tuple(ApiResource(workload.KUEUE_GROUP, version, "workloads") for version in workload.KUEUE_VERSIONS)
MAX_EVENTS = 200
"""Events of one object that are read. Components of Kubernetes aggregate theirs, so an object has a few."""


class KubeClient:
    """Client of the API server. All requests may raise `ApiError` or one of `CONNECTION_ERRORS`.

    Writes raise `NotLeaderError` if `may_write` returns False.
    """

    def __init__(self, transport: Transport, may_write: Callable[[], bool]) -> None:
        self._transport = transport
        self._may_write = may_write

    def now(self) -> datetime:
        """Return the current time of the API server's clock."""
        return self._transport.now()

    async def list_objects(self, resource: ApiResource, namespace: str | None) -> ObjectList:
        """Return all objects of a resource in a namespace, or in the cluster if it is None.

        The list is not paginated: the API server serves a complete list from memory, but reads pages from etcd.
        """
        query = {"labelSelector": resource.label_selector}
        content = await self._transport.read_raw(resource.build_path(namespace), query)
        decoded = decode_response(content, _LIST_DECODER)
        return ObjectList(decoded["items"], parse_resource_version(decoded["metadata"].get("resourceVersion", "")))

    async def read_finetunejob(self, namespace: str, name: str) -> Body | None:
        """Return the stored FineTuneJob. It is read with a list, which the watches need permission for in any case."""
        matches = await self._list_items(FINETUNEJOBS.build_path(namespace), {"fieldSelector": f"metadata.name={name}"})
        return matches[0] if matches else None

    async def read_job(self, namespace: str, name: str) -> Body | None:
        """Return the Job of that name, whatever its owner is, or None."""
        try:
            return await self._call_api("GET", f"{JOBS.build_path(namespace)}/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list_pods(self, namespace: str, name: str) -> list[Body]:
        """Return the stored pods with the label of a FineTuneJob."""
        return await self._list_items(PODS.build_path(namespace), {"labelSelector": f"{JOB_LABEL}={name}"})

    async def list_task_jobs(self, namespace: str | None) -> list[Body]:
        """Return the Jobs of tasks in a namespace, or in the cluster if it is None."""
        return await self._list_items(JOBS.build_path(namespace), {"labelSelector": TASK_LABEL})

    async def list_job_pods(self, job: Body) -> list[Body]:
        """Return the pods of a Job, whatever labels its template has."""
        meta = job["metadata"]
        query = {"labelSelector": f"batch.kubernetes.io/job-name={meta['name']}"}
        return await self._list_items(PODS.build_path(meta["namespace"]), query)

    async def create_job(self, job: Body) -> Body:
        """Create a Job. Raises `ApiError` (409) if one of that name exists."""
        return await self._call_api("POST", JOBS.build_path(job["metadata"]["namespace"]), body=job)

    async def create_service(self, service: Body) -> Body:
        """Create a Service. Return the existing one if there is one of that name."""
        meta = service["metadata"]
        path = SERVICES.build_path(meta["namespace"])
        try:
            return await self._call_api("POST", path, body=service)
        except ApiError as error:
            if error.status != 409:
                raise
            return await self._call_api("GET", f"{path}/{meta['name']}")

    async def patch_job(self, job: Body, patch: Body) -> Body:
        """Merge a patch into a Job. Raises `ApiError` (409) if it was replaced by another of that name.

        The resource version is not compared, because the response also shows changes that a lagging watch has not
        reported. A late patch of an earlier leader is corrected by the next reconcile.
        """
        meta = job["metadata"]
        body = {**patch, "metadata": {**patch.get("metadata", {}), "uid": meta["uid"]}}
        path = f"{JOBS.build_path(meta['namespace'])}/{meta['name']}"
        return await self._call_api("PATCH", path, body=body)

    async def delete_job(self, job: Body) -> Body | None:
        """Delete a Job after its pods. Return the Job, or None if it is gone. Raises `ApiError` (409) if it changed."""
        return await self._delete_object(JOBS, job, "Foreground")

    async def delete_pod(self, pod: Body, grace_period_seconds: int | None = None) -> None:
        """Delete a pod, or shorten the grace period of one that is being deleted.

        One that is gone, or that another of the same name has replaced, is no error.
        """
        meta = pod["metadata"]
        options: Body = {"preconditions": {"uid": meta["uid"]}}
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        try:
            await self._call_api("DELETE", f"{PODS.build_path(meta['namespace'])}/{meta['name']}", body=options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def delete_finetunejob(self, body: Body) -> Body | None:
        """Delete a FineTuneJob and all that it owns. Return it, or None if it is gone.

        Raises `ApiError` (409) if it changed.
        """
        return await self._delete_object(FINETUNEJOBS, body, "Background")

    async def _delete_object(self, resource: ApiResource, body: Body, propagation_policy: str) -> Body | None:
        meta = body["metadata"]
        preconditions = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
        options = {"propagationPolicy": propagation_policy, "preconditions": preconditions}
        try:
            response = await self._call_api(
                "DELETE", f"{resource.build_path(meta['namespace'])}/{meta['name']}", body=options
            )
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return response if "spec" in response else None  # a Status means that the object is gone

    async def create_finetunejob(self, body: Body, *, dry_run: bool = False) -> Body:
        """Create a FineTuneJob, or only ask the API server whether it would. Raises `ApiError` (409) if one of that
        name exists."""
        query = {"dryRun": "All"} if dry_run else None
        path = FINETUNEJOBS.build_path(body["metadata"]["namespace"])
        return await self._call_api("POST", path, query=query, body=body)

    async def patch_finetunejob(self, body: Body, spec_patch: Body) -> Body:
        """Merge a patch into a FineTuneJob's spec. Raises `ApiError` (409) if it was replaced by another of that
        name."""
        meta = body["metadata"]
        patch = {"metadata": {"uid": meta["uid"]}, "spec": spec_patch}
        return await self._call_api("PATCH", f"{FINETUNEJOBS.build_path(meta['namespace'])}/{meta['name']}", body=patch)

    async def patch_status(self, resource: ApiResource, namespace: str, name: str, patch: Body) -> Body:
        """Merge a patch into the status of an object.

        Raises `ApiError` (409) if the patch has another resourceVersion than the stored object.
        """
        return await self._call_api("PATCH", f"{resource.build_path(namespace)}/{name}/status", body=patch)

    async def list_events(self, namespace: str, uid: str) -> list[Body]:
        """Return the Events of an object, at most `MAX_EVENTS`: users may create Events about any object."""
        query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": str(MAX_EVENTS)}
        return await self._list_items(EVENTS.build_path(namespace), query)

    async def list_workloads(self, namespace: str, job_uid: str) -> list[Body]:
        """Return the Kueue Workloads of a Job, none if they cannot be read: they only explain why it waits."""
        for resource in WORKLOADS:
            with suppress(ApiError):
                query = {"labelSelector": f"{workload.JOB_UID_LABEL}={job_uid}"}
                return await self._list_items(resource.build_path(namespace), query)
        return []

    async def create_event(self, event: Body) -> None:
        """Create an Event. One that exists already is no error."""
        try:
            await self._call_api("POST", EVENTS.build_path(event["metadata"]["namespace"]), body=event)
        except ApiError as error:
            if error.status != 409:
                raise

    async def _list_items(self, path: str, query: dict[str, str]) -> list[Body]:
        items: list[Body] = (await self._call_api("GET", path, query=query))["items"]
        return items

    async def _call_api(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Body | None = None
    ) -> Body:
        def check_leadership() -> None:
            # A process may be frozen, or wait for a login, and resume after another replica became the leader.
            if method != "GET" and not self._may_write():
                raise NotLeaderError(f"no longer the leader: {method} {path} was not sent")

        return await self._transport.call(method, path, query=query, body=body, check_permission=check_leadership)
