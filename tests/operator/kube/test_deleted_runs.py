"""The cache keeps deleted FineTuneJobs until the cleaning of their checkpoints is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import build_key

from finetune_operator.kube import finetunejob_cache
from finetune_operator.kube.cache import ListSnapshot
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

KEY = build_key()
STARTED = {"startTime": "2026-11-23T08:00:05Z"}
COMPLETE = {**STARTED, "conditions": [{"type": "Complete", "status": "True"}]}
FAILED = {**STARTED, "conditions": [{"type": "Failed", "status": "True"}]}


def _fill_cache(build: type[Builders], status: dict[str, Any], **spec: Any) -> tuple[FineTuneJobCache, dict[str, Any]]:
    cache, body = FineTuneJobCache(), {**build.finetunejob(spec=spec), "status": status}
    cache.finetunejobs.update(KEY, body)
    return cache, body


DELETED = {
    "running": (STARTED, {}, True),
    "failed": (FAILED, {}, True),
    "failed and cleaned": ({**FAILED, "checkpointsCleanedTime": "2026-11-30T08:00:05Z"}, {}, False),
    "complete": (COMPLETE, {}, False),
    "never started": ({}, {}, False),
    "of another controller": (STARTED, {"managedBy": "example.com/other"}, False),
    "named ours": (STARTED, {"managedBy": "finetune.dev/finetune-operator"}, True),
}


@pytest.mark.parametrize("is_event_lost", [False, True], ids=["event", "list without it"])
@pytest.mark.parametrize(("status", "spec", "is_kept"), DELETED.values(), ids=DELETED)
def test_cache_deleted_finetunejob_is_kept_if_it_may_have_checkpoints(
    build: type[Builders], status: dict[str, Any], spec: dict[str, Any], is_kept: bool, is_event_lost: bool
) -> None:
    cache, body = _fill_cache(build, status, **spec)
    if is_event_lost:
        cache.finetunejobs.replace({None: ListSnapshot(set(), 11)})
    else:
        cache.finetunejobs.delete(body)
    assert cache.get_finetunejob(KEY) is None
    runs = cache.finetunejobs.list_deleted_runs(KEY)
    assert [run.body["spec"] for run in runs] == ([body["spec"]] if is_kept else [])
    assert cache.list_active_keys() == ([KEY] if is_kept else [])
    for run in runs:
        cache.finetunejobs.forget_deleted_run(run)
    assert cache.list_active_keys() == []


def test_cache_deleted_namespace_keeps_nothing(build: type[Builders]) -> None:
    cache, _ = _fill_cache(build, STARTED)
    cache.finetunejobs.drop_namespace(KEY.namespace)
    assert cache.list_active_keys() == []


def test_cache_standby_forgets_deleted_finetunejobs(build: type[Builders], monkeypatch: pytest.MonkeyPatch) -> None:
    cache, body = _fill_cache(build, STARTED)
    cache.finetunejobs.delete(body)
    cache.evict_finished()
    assert cache.list_active_keys() == [KEY]
    monkeypatch.setattr(finetunejob_cache, "_DELETED_RUN_SECONDS", 0.0)
    cache.evict_finished()
    assert cache.list_active_keys() == []
