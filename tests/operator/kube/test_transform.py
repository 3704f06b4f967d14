"""The cache keeps almost nothing of a finished run, and all fields that are read of an unfinished one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.support.operator.builders import build_key

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.api.run_policy import RunPolicy, read_run_policy
from finetune_operator.kube import transform
from finetune_operator.kube.cache import ListSnapshot, ObjectCache
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache, get_finetunejob_key, get_owner_key
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.deadlines import get_startup_deadline_seconds
from finetune_operator.status.events import create_merge_patch
from finetune_operator.status.job_status import compute_status, is_terminal

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

Make = Callable[[type["Builders"]], dict[str, Any]]
KEY = build_key()
ENDS = {"complete": ("Complete", 0, "Succeeded"), "failed": ("Failed", 42, "Failed"), "cancelled": None}


def _build_ended_finetunejob(build: type[Builders], kind: str, **metadata: Any) -> dict[str, Any]:
    """Return a finished FineTuneJob with a status that the operator computed."""
    observed = ObservedState(run_policy=RunPolicy(cancel=True))
    if end := ENDS[kind]:
        condition, code, phase = end
        reason = {"complete": "Completed", "failed": "DataInvalid"}[kind]
        message = json.dumps({"reason": reason, "message": "done", "dataset": {"rows": 5, "kept": 4}})
        pod = build.pod(state=build.terminated(code, message), phase=phase)
        observed = ObservedState(build.job({condition: ("x", "y")}), (pod,))
    body = build.finetunejob(spec={"ttlSecondsAfterFinished": 60}, managedFields=[{"manager": "kubectl"}], **metadata)
    status = compute_status(ObjectMeta.model_validate(body["metadata"]), FineTuneJobStatus(), observed, build.now)
    return {**body, "status": status.to_json()}


@pytest.mark.parametrize("kind", ENDS)
def test_transform_ended_finetunejob_keeps_status_and_ttl(build: type[Builders], kind: str) -> None:
    body = _build_ended_finetunejob(build, kind)
    if kind == "failed":
        body["status"]["checkpointsCleanedTime"] = build.now
    size = len(json.dumps(body))
    stripped = transform.strip_finetunejob(body)
    assert len(json.dumps(stripped)) < 0.6 * size
    assert get_finetunejob_key(stripped) == KEY
    assert read_run_policy(stripped).ttl_seconds_after_finished == 60
    status = FineTuneJobStatus.model_validate(stripped["status"])
    assert is_terminal(status)
    assert status.completion_time
    assert "model" not in stripped["spec"]


def test_transform_failed_finetunejob_keeps_spec_until_its_checkpoints_are_cleaned(build: type[Builders]) -> None:
    body = _build_ended_finetunejob(build, "failed")
    started = {**body, "status": {**body["status"], "startTime": build.now}}
    stripped = transform.strip_finetunejob(started)
    assert stripped["spec"] == body["spec"]
    assert "dataset" not in stripped["status"]
    raw = msgspec.Raw(json.dumps(started).encode())
    assert transform.strip_finetunejob(transform.decode_finetunejob(raw, transform.decode_head(raw))) == stripped
    cleaned = {**started, "status": {**started["status"], "checkpointsCleanedTime": build.now}}
    assert "model" not in transform.strip_finetunejob(cleaned)["spec"]


@pytest.mark.parametrize("kind", ENDS)
def test_transform_ended_finetunejob_new_generation_patches_only_that(build: type[Builders], kind: str) -> None:
    stripped = transform.strip_finetunejob(_build_ended_finetunejob(build, kind, generation=1))
    stripped["metadata"]["generation"] = 2
    before = FineTuneJobStatus.model_validate(stripped["status"])
    after = compute_status(ObjectMeta.model_validate(stripped["metadata"]), before, ObservedState(), build.now)
    assert create_merge_patch(before.to_json(), after.to_json()) == {"observedGeneration": 2}


def test_transform_running_finetunejob_loses_only_user_metadata(build: type[Builders]) -> None:
    """Annotations may take up to 256 KiB, and a tenant may create many FineTuneJobs."""
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "team": "a"}
    body = build.finetunejob(managedFields=[{}], annotations={"team": "a" * 10_000}, labels=labels, finalizers=["a/b"])
    stripped = transform.strip_finetunejob(body)
    assert stripped["spec"] == build.finetunejob()["spec"]
    assert stripped["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert not {"managedFields", "annotations", "finalizers"} & stripped["metadata"].keys()


def _build_cache(build: type[Builders], kind: str | None) -> FineTuneJobCache:
    cache = FineTuneJobCache()
    body = _build_ended_finetunejob(build, kind) if kind else build.finetunejob()
    cache.finetunejobs.update(KEY, body)
    return cache


OWNED_OBJECTS = {
    "an ended Job": ("jobs", lambda build: build.job({"Complete": ("x", "y")}), False),
    "a Job that failed": ("jobs", lambda build: build.job({"Failed": ("x", "y")}), False),
    "an active Job": ("jobs", lambda build: build.job(), True),
    "an ended pod": ("pods", lambda build: build.pod(state=build.terminated(0), phase="Succeeded"), False),
    "a pod that runs": ("pods", lambda build: build.pod(state={"running": {}}, phase="Running"), True),
}


@pytest.mark.parametrize(("plural", "make", "stays"), OWNED_OBJECTS.values(), ids=OWNED_OBJECTS)
def test_cache_ended_finetunejob_keeps_only_live_objects(
    build: type[Builders], plural: str, make: Make, stays: bool
) -> None:
    caches: dict[str, ObjectCache] = vars(_build_cache(build, "complete"))
    assert caches[plural].update(KEY, make(build)) is stays
    assert bool(caches[plural].list_by_key(KEY)) is stays
    caches = vars(_build_cache(build, None))
    assert caches[plural].update(KEY, make(build)), "objects of an active FineTuneJob stay cached"


def test_cache_forget_run_drops_ended_objects(build: type[Builders]) -> None:
    cache = _build_cache(build, None)
    cache.jobs.update(KEY, build.job({"Complete": ("x", "y")}))
    cache.pods.update(KEY, build.pod(state=build.terminated(0), phase="Succeeded"))
    cache.pods.update(KEY, build.pod("bot-2", state={"running": {}}, phase="Running"))
    body = _build_ended_finetunejob(build, "complete")
    body["metadata"]["resourceVersion"] = "11"
    cache.finetunejobs.update(KEY, body)
    cache.evict_run(KEY)
    assert cache.jobs.list_by_key(KEY) == []
    assert [pod["metadata"]["name"] for pod in cache.pods.list_by_key(KEY)] == ["bot-2"]


def test_transform_job_keeps_startup_deadline_of_profile(build: type[Builders]) -> None:
    annotations = {"finetune.dev/startup-deadline-seconds": "60", "finetune.dev/profile": "a100", "other": "x" * 1000}
    job = build.job()
    stripped = transform.strip_job({**job, "metadata": {**job["metadata"], "annotations": annotations}})
    assert get_startup_deadline_seconds(RunPolicy(), stripped) == 60
    assert "other" not in stripped["metadata"]["annotations"]


def test_cache_standby_drops_ended_job_at_next_list(build: type[Builders]) -> None:
    cache, job = _build_cache(build, None), build.job({"Complete": ("x", "y")})
    job["metadata"]["resourceVersion"] = "20"
    assert cache.jobs.update(KEY, job)
    body = _build_ended_finetunejob(build, "complete")
    body["metadata"]["resourceVersion"] = "21"
    cache.finetunejobs.update(KEY, body)
    assert not cache.jobs.update(KEY, job)
    assert len(cache.jobs) == 0


OPEN_CASES = {
    "new": (lambda build: build.finetunejob(), True),
    "ended, to be deleted some day": (lambda build: _build_ended_finetunejob(build, "complete"), True),
    "ended": (lambda build: _remove_ttl(_build_ended_finetunejob(build, "complete")), False),
    "ended, changed since": (
        lambda build: _remove_ttl(_build_ended_finetunejob(build, "complete", generation=2)),
        True,
    ),
}


def _remove_ttl(body: dict[str, Any]) -> dict[str, Any]:
    del body["spec"]["ttlSecondsAfterFinished"]
    body["status"]["observedGeneration"] = 1
    return body


@pytest.mark.parametrize(("make", "is_open"), OPEN_CASES.values(), ids=OPEN_CASES)
def test_cache_open_keys_exclude_finished_finetunejobs(build: type[Builders], make: Make, is_open: bool) -> None:
    cache = FineTuneJobCache()
    cache.finetunejobs.update(KEY, make(build))
    assert cache.list_active_keys() == ([KEY] if is_open else [])


def test_cache_open_keys_include_ended_with_live_job(build: type[Builders]) -> None:
    cache = FineTuneJobCache()
    cache.finetunejobs.update(KEY, _remove_ttl(_build_ended_finetunejob(build, "complete")))
    cache.jobs.update(KEY, build.job())
    assert cache.list_active_keys() == [KEY]


HEADS = {
    "FineTuneJob": lambda build: _build_ended_finetunejob(build, "failed"),
    "Job": lambda build: build.job({"Complete": ("x", "y")}),
    "pod": lambda build: {**build.pod(phase="Failed"), "extra": [{"deep": None}]},
}


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_head_has_key_uid_phase_and_conditions(build: type[Builders], make: Make) -> None:
    body = make(build)
    raw = msgspec.Raw(json.dumps(body).encode())
    head = transform.decode_head(raw)
    assert get_owner_key(head) == get_owner_key(body)
    assert head["metadata"]["uid"] == body["metadata"]["uid"]
    assert head["status"].get("phase") == body["status"].get("phase")
    condition_types = {condition["type"] for condition in body["status"].get("conditions", [])}
    assert {condition["type"] for condition in head["status"].get("conditions", [])} == condition_types
    assert transform.decode_body(raw, head) == body


@pytest.mark.parametrize("kind", ENDS)
def test_read_finetunejob_ended_equals_transformed(build: type[Builders], kind: str) -> None:
    raw = msgspec.Raw(json.dumps(_build_ended_finetunejob(build, kind)).encode())
    read = transform.strip_finetunejob(transform.decode_finetunejob(raw, transform.decode_head(raw)))
    assert read == transform.strip_finetunejob(_build_ended_finetunejob(build, kind))


def test_read_finetunejob_running_is_read_completely(build: type[Builders]) -> None:
    raw = msgspec.Raw(json.dumps(build.finetunejob()).encode())
    assert transform.decode_finetunejob(raw, transform.decode_head(raw)) == build.finetunejob()


def test_cache_listed_object_already_stored_is_not_decoded(build: type[Builders]) -> None:
    cache = _build_cache(build, None)
    read: list[int] = []

    def decode() -> dict[str, Any]:
        read.append(1)
        return build.finetunejob(resourceVersion="11")

    assert not cache.finetunejobs.add_if_newer(KEY, build.finetunejob(), decode)
    assert read == []
    assert cache.finetunejobs.add_if_newer(KEY, build.finetunejob(resourceVersion="11"), decode)
    assert read == [1]


def _build_deleted_pod(build: type[Builders], name: str, index: int, minute: int) -> dict[str, Any]:
    """Return the object in a pod's deletion event."""
    pod = build.pod(name, build.terminated(143), "Failed", created=f"2026-11-23T08:{minute:02}:00Z")
    annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
    return {**pod, "metadata": {**pod["metadata"], "annotations": annotations, "labels": {"finetune.dev/job": "bot"}}}


def test_cache_keeps_youngest_deleted_pod_of_each_index(build: type[Builders]) -> None:
    cache = FineTuneJobCache()
    cache.finetunejobs.update(KEY, build.finetunejob())
    for name, index, minute in (("new-0", 0, 5), ("new-1", 1, 5), ("old-0", 0, 1)):
        cache.pods.delete(_build_deleted_pod(build, name, index, minute))
    assert {pod["metadata"]["name"] for pod in cache.pods.list_with_deleted(KEY)} == {"new-0", "new-1"}
    assert (len(cache.pods), cache.pods.list_by_key(KEY)) == (0, [])
    cache.finetunejobs.clear()
    cache.evict_finished()
    assert cache.pods.list_with_deleted(KEY) == []


def test_cache_pod_relabeled_is_stored_once(build: type[Builders]) -> None:
    cache, pod = FineTuneJobCache(), _build_deleted_pod(build, "bot-0", 0, 5)
    pod["metadata"]["resourceVersion"] = "7"
    cache.finetunejobs.update(KEY, build.finetunejob())
    cache.pods.delete(pod)
    cache.pods.update(KEY, {**pod, "metadata": {**pod["metadata"], "resourceVersion": "8"}})
    assert len(cache.pods.list_with_deleted(KEY)) == 1


def test_cache_standby_forgets_deleted_pods_of_ended_run(build: type[Builders]) -> None:
    cache = FineTuneJobCache()
    cache.finetunejobs.update(KEY, build.finetunejob())
    cache.pods.delete(_build_deleted_pod(build, "bot-0", 0, 5))
    cache.finetunejobs.update(KEY, _build_ended_finetunejob(build, "complete", resourceVersion="11"))
    cache.evict_finished()
    assert cache.pods.list_with_deleted(KEY) == []


@pytest.mark.parametrize(("state", "count"), [("terminated", 1), ("running", 0)])
def test_cache_keeps_ended_pod_whose_deletion_was_missed(build: type[Builders], state: str, count: int) -> None:
    cache, pod = FineTuneJobCache(), _build_deleted_pod(build, "bot-0", 0, 5)
    if state == "running":
        pod = {**pod, "status": build.pod(state={"running": {"startedAt": build.now}}, phase="Running")["status"]}
    cache.finetunejobs.update(KEY, build.finetunejob())
    cache.pods.update(KEY, pod)
    cache.pods.replace({None: ListSnapshot(set(), 9)})
    assert (len(cache.pods), len(cache.pods.list_with_deleted(KEY))) == (0, count)
