"""What the store keeps: of a run that has ended as good as nothing, and all that is asked for of any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.api.run_policy import read_run_policy
from finetune_operator.kube import transform
from finetune_operator.kube.cache import InformerCache, Key, ObjectCache, get_object_key, get_owner_key
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.events import create_merge_patch
from finetune_operator.status.job_status import compute_status, is_terminal

if TYPE_CHECKING:
    from tests.operator.bodies import Build

Make = Callable[[type["Build"]], dict[str, Any]]
KEY: Key = ("team", "bot")
ENDS = {"complete": ("Complete", 0, "Succeeded"), "failed": ("Failed", 42, "Failed")}


def _ended(build: type[Build], kind: str, **metadata: Any) -> dict[str, Any]:
    """A FineTuneJob as it is stored after its end, by the operator's own status."""
    condition, code, phase = ENDS[kind]
    reason = {"complete": "Completed", "failed": "DataInvalid"}[kind]
    word = json.dumps({"reason": reason, "message": "done", "dataset": {"rows": 5, "kept": 4}})
    job = build.job({condition: ("x", "y")})
    pod = build.pod(state=build.ended(code, word), phase=phase)
    body = build.stored(spec={"ttlSecondsAfterFinished": 60}, managedFields=[{"manager": "kubectl"}], **metadata)
    status = compute_status(
        ObjectMeta.model_validate(body["metadata"]), FineTuneJobStatus(), ObservedState(job, (pod,)), build.now
    )
    return {**body, "status": status.to_json()}


@pytest.mark.parametrize("kind", ENDS)
def test_an_ended_finetunejob_keeps_what_its_end_needs(build: type[Build], kind: str) -> None:
    body = _ended(build, kind)
    size = len(json.dumps(body))
    kept = transform.strip_finetunejob(body)
    assert len(json.dumps(kept)) < 0.6 * size
    assert get_object_key(kept) == KEY
    assert read_run_policy(kept).ttl_seconds_after_finished == 60
    status = FineTuneJobStatus.model_validate(kept["status"])
    assert is_terminal(status)
    assert status.completion_time
    assert "model" not in kept["spec"]


@pytest.mark.parametrize("kind", ENDS)
def test_a_new_generation_of_an_ended_finetunejob_changes_that_number_alone(build: type[Build], kind: str) -> None:
    kept = transform.strip_finetunejob(_ended(build, kind, generation=1))
    kept["metadata"]["generation"] = 2
    before = FineTuneJobStatus.model_validate(kept["status"])
    after = compute_status(ObjectMeta.model_validate(kept["metadata"]), before, ObservedState(), build.now)
    assert create_merge_patch(before.to_json(), after.to_json()) == {"observedGeneration": 2}


def test_a_finetunejob_that_runs_is_kept_whole_but_for_what_its_owner_wrote_beside_it(build: type[Build]) -> None:
    """Annotations alone may be 256 KiB, and a tenant may make many FineTuneJobs."""
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "team": "a"}
    body = build.stored(managedFields=[{}], annotations={"team": "a" * 10_000}, labels=labels, finalizers=["a/b"])
    kept = transform.strip_finetunejob(body)
    assert kept["spec"] == build.stored()["spec"]
    assert kept["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert not {"managedFields", "annotations", "finalizers"} & kept["metadata"].keys()


def _store(build: type[Build], kind: str | None) -> InformerCache:
    store = InformerCache()
    body = _ended(build, kind) if kind else build.stored()
    store.finetunejobs.update(KEY, body)
    return store


CHILDREN = {
    "an ended Job": ("jobs", lambda build: build.job({"Complete": ("x", "y")}), False),
    "a Job that failed": ("jobs", lambda build: build.job({"Failed": ("x", "y")}), False),
    "a Job that goes on": ("jobs", lambda build: build.job(), True),
    "an ended pod": ("pods", lambda build: build.pod(state=build.ended(0), phase="Succeeded"), False),
    "a pod that runs": ("pods", lambda build: build.pod(state={"running": {}}, phase="Running"), True),
}


@pytest.mark.parametrize(("shelf", "make", "stays"), CHILDREN.values(), ids=CHILDREN)
def test_of_an_ended_finetunejob_only_what_still_lives_is_kept(
    build: type[Build], shelf: str, make: Make, stays: bool
) -> None:
    shelves: dict[str, ObjectCache] = vars(_store(build, "complete"))
    assert shelves[shelf].update(KEY, make(build)) is stays
    assert bool(shelves[shelf].list_by_key(KEY)) is stays
    shelves = vars(_store(build, None))
    assert shelves[shelf].update(KEY, make(build)), "of one that goes on, all is kept"


def test_what_an_end_leaves_is_let_go(build: type[Build]) -> None:
    store = _store(build, None)
    store.jobs.update(KEY, build.job({"Complete": ("x", "y")}))
    store.pods.update(KEY, build.pod(state=build.ended(0), phase="Succeeded"))
    store.pods.update(KEY, build.pod("bot-2", state={"running": {}}, phase="Running"))
    body = _ended(build, "complete")
    body["metadata"]["resourceVersion"] = "11"
    store.finetunejobs.update(KEY, body)
    store.evict_run(KEY)
    assert store.jobs.list_by_key(KEY) == []
    assert [pod["metadata"]["name"] for pod in store.pods.list_by_key(KEY)] == ["bot-2"]


def test_a_standby_lets_it_go_with_the_next_list(build: type[Build]) -> None:
    store, job = _store(build, None), build.job({"Complete": ("x", "y")})
    job["metadata"]["resourceVersion"] = "20"
    assert store.jobs.update(KEY, job)
    body = _ended(build, "complete")
    body["metadata"]["resourceVersion"] = "21"
    store.finetunejobs.update(KEY, body)
    assert not store.jobs.update(KEY, job)
    assert len(store.jobs) == 0


OPEN = {
    "new": (lambda build: build.stored(), True),
    "ended, to be deleted some day": (lambda build: _ended(build, "complete"), True),
    "ended": (lambda build: _without_ttl(_ended(build, "complete")), False),
    "ended, changed since": (lambda build: _without_ttl(_ended(build, "complete", generation=2)), True),
}


def _without_ttl(body: dict[str, Any]) -> dict[str, Any]:
    del body["spec"]["ttlSecondsAfterFinished"]
    body["status"]["observedGeneration"] = 1
    return body


@pytest.mark.parametrize(("make", "is_open"), OPEN.values(), ids=OPEN)
def test_who_has_ended_for_good_is_not_looked_at_again(build: type[Build], make: Make, is_open: bool) -> None:
    store = InformerCache()
    store.finetunejobs.update(KEY, make(build))
    assert store.list_active_keys() == ([KEY] if is_open else [])


def test_a_job_that_goes_on_after_the_end_is_looked_at(build: type[Build]) -> None:
    store = InformerCache()
    store.finetunejobs.update(KEY, _without_ttl(_ended(build, "complete")))
    store.jobs.update(KEY, build.job())
    assert store.list_active_keys() == [KEY]


HEADS = {
    "FineTuneJob": lambda build: _ended(build, "failed"),
    "Job": lambda build: build.job({"Complete": ("x", "y")}),
    "pod": lambda build: {**build.pod(phase="Failed"), "extra": [{"deep": None}]},
}


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_a_head_tells_whose_it_is_and_whether_it_has_ended(build: type[Build], make: Make) -> None:
    body = make(build)
    raw = msgspec.Raw(json.dumps(body).encode())
    head = transform.decode_head(raw)
    assert get_owner_key(head) == get_owner_key(body)
    assert head["metadata"]["uid"] == body["metadata"]["uid"]
    assert head["status"].get("phase") == body["status"].get("phase")
    kinds = {each["type"] for each in body["status"].get("conditions", [])}
    assert {each["type"] for each in head["status"].get("conditions", [])} == kinds
    assert transform.decode_body(raw, head) == body


@pytest.mark.parametrize("kind", ENDS)
def test_from_a_list_an_ended_one_is_read_as_it_is_kept(build: type[Build], kind: str) -> None:
    raw = msgspec.Raw(json.dumps(_ended(build, kind)).encode())
    read = transform.strip_finetunejob(transform.decode_finetunejob(raw, transform.decode_head(raw)))
    assert read == transform.strip_finetunejob(_ended(build, kind))


def test_from_a_list_one_that_goes_on_is_read_whole(build: type[Build]) -> None:
    raw = msgspec.Raw(json.dumps(build.stored()).encode())
    assert transform.decode_finetunejob(raw, transform.decode_head(raw)) == build.stored()


def test_a_listed_body_that_is_known_is_not_read_again(build: type[Build]) -> None:
    store = _store(build, None)
    read: list[int] = []

    def whole() -> dict[str, Any]:
        read.append(1)
        return build.stored(resourceVersion="11")

    assert not store.finetunejobs.add_if_newer(KEY, build.stored(), whole)
    assert read == []
    assert store.finetunejobs.add_if_newer(KEY, build.stored(resourceVersion="11"), whole)
    assert read == [1]


def _gone(build: type[Build], name: str, index: int, minute: int) -> dict[str, Any]:
    """The body of a pod's deletion."""
    pod = build.pod(name, build.ended(143), "Failed", created=f"2026-11-23T08:{minute:02}:00Z")
    annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
    return {**pod, "metadata": {**pod["metadata"], "annotations": annotations, "labels": {"finetune.dev/job": "bot"}}}


def test_of_each_index_the_youngest_pod_that_is_gone_is_kept(build: type[Build]) -> None:
    store = InformerCache()
    store.finetunejobs.update(KEY, build.stored())
    for name, index, minute in (("new-0", 0, 5), ("new-1", 1, 5), ("old-0", 0, 1)):
        store.pods.delete(_gone(build, name, index, minute))
    assert {pod["metadata"]["name"] for pod in store.pods.list_with_deleted(KEY)} == {"new-0", "new-1"}
    assert (len(store.pods), store.pods.list_by_key(KEY)) == (0, [])
    store.finetunejobs.clear()
    store.evict_finished_runs()
    assert store.pods.list_with_deleted(KEY) == []


def test_a_pod_whose_label_comes_back_is_there_once(build: type[Build]) -> None:
    store, pod = InformerCache(), _gone(build, "bot-0", 0, 5)
    pod["metadata"]["resourceVersion"] = "7"
    store.finetunejobs.update(KEY, build.stored())
    store.pods.delete(pod)
    store.pods.update(KEY, {**pod, "metadata": {**pod["metadata"], "resourceVersion": "8"}})
    assert len(store.pods.list_with_deleted(KEY)) == 1


def test_a_replica_without_work_keeps_nothing_of_a_run_that_has_ended(build: type[Build]) -> None:
    store = InformerCache()
    store.finetunejobs.update(KEY, build.stored())
    store.pods.delete(_gone(build, "bot-0", 0, 5))
    store.finetunejobs.update(KEY, _ended(build, "complete", resourceVersion="11"))
    store.evict_finished_runs()
    assert store.pods.list_with_deleted(KEY) == []
