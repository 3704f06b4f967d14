"""The access state of each watched namespace, and its effect on cache, metrics and work."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from tests.support.operator.builders import build_key

from finetune_operator.controller.finetunejob.gauges import collect_job_gauges
from finetune_operator.controller.gauges import collect_operator_gauges
from finetune_operator.kube import transform
from finetune_operator.kube.cache import ListSnapshot, ObjectCache
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.kube.namespace_access import NamespaceRegistry, UnreadableNamespaces

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

FORBIDDEN = PermissionError("403 Forbidden: cannot list pods")
TIMEOUT = TimeoutError("no answer")


def test_namespace_access_forbidden_twice_logs_change_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    namespaces = NamespaceRegistry(["team-a", "team-b"])
    namespaces.record_list("team-a")
    for _ in range(3):
        namespaces.record_unreadable("team-b", FORBIDDEN)
    namespaces.record_list("team-b")
    refused, back = (record.getMessage() for record in caplog.records)
    assert "team-b" in refused
    assert "cannot list pods" in refused
    assert "restore the operator's Role and RoleBinding" in refused
    assert back == "namespace team-b can be read again"


def test_namespace_access_all_forbidden_logs_error(caplog: pytest.LogCaptureFixture) -> None:
    namespaces = NamespaceRegistry(["team-a", "team-b"])
    namespaces.record_unreadable("team-a", FORBIDDEN)
    assert not [record for record in caplog.records if record.levelno == logging.ERROR]
    namespaces.record_unreadable("team-b", FORBIDDEN)
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1


def test_silence_counts_newest_list_of_readable_namespace() -> None:
    namespaces = NamespaceRegistry(["team-a", "team-b", "team-c"])
    namespaces.record_list("team-a")
    namespaces.record_failure("team-b", TIMEOUT)
    namespaces.record_unreadable("team-c", FORBIDDEN)
    for name, age in (("team-a", 100), ("team-b", 500), ("team-c", 0)):
        namespaces.states[name].last_contact -= age
    assert 99 < namespaces.compute_silence_seconds() < 110


def test_silence_forbidden_namespace_counts_from_refusal() -> None:
    namespaces = NamespaceRegistry(["team-a"])
    namespaces.states["team-a"].last_contact -= 1000
    namespaces.record_unreadable("team-a", FORBIDDEN)
    assert namespaces.compute_silence_seconds() < 10


def test_silence_without_namespaces_counts_from_last_selection() -> None:
    namespaces = NamespaceRegistry([])
    namespaces.replace_names([])
    assert namespaces.compute_silence_seconds() < 10


def test_replace_names_keeps_states_and_ignores_late_lists() -> None:
    namespaces = NamespaceRegistry(["team-a", "team-b"])
    namespaces.record_unreadable("team-a", FORBIDDEN)
    assert namespaces.replace_names(["team-a", "team-c"]) == {"team-c"}
    namespaces.record_list("team-b")
    namespaces.record_failure("team-b", TIMEOUT)
    assert namespaces.get_scopes() == ["team-a", "team-c"]
    assert namespaces.get_unreadable() == {"team-a"}
    assert namespaces.get_listed_names() == set()


@pytest.mark.parametrize(("name", "is_unreadable"), [("team-a", False), ("team-b", True), ("team-c", True)])
def test_unreadable_namespaces_contain_refused_and_unwatched(name: str, is_unreadable: bool) -> None:
    namespaces = NamespaceRegistry(["team-a", "team-b"])
    namespaces.record_unreadable("team-b", FORBIDDEN)
    assert (name in UnreadableNamespaces(namespaces)) == is_unreadable


def test_unreadable_namespaces_cluster_scope_contain_none() -> None:
    assert "team-a" not in UnreadableNamespaces(NamespaceRegistry([None]))


def test_unlisted_returns_namespaces_to_retry() -> None:
    namespaces = NamespaceRegistry(["team-a", "team-b", "team-c", "team-d"])
    namespaces.record_list("team-a")
    namespaces.record_unreadable("team-b", FORBIDDEN)
    namespaces.record_failure("team-c", TIMEOUT)
    assert namespaces.get_failed_scopes() == ["team-b", "team-c", "team-d"]
    assert namespaces.get_unreadable() == {"team-b"}
    assert namespaces.get_list_errors() == [TIMEOUT]


def test_operator_gauges_show_each_configured_namespace() -> None:
    namespaces = NamespaceRegistry(["team-a", "team-b"])
    namespaces.record_unreadable("team-b", FORBIDDEN)
    metric_families = {family.name: family for family in collect_operator_gauges({}, None, True, namespaces)}
    samples = metric_families["finetune_operator_namespace_readable"].samples
    assert {sample.labels["namespace"]: sample.value for sample in samples} == {"team-a": 1, "team-b": 0}


def test_operator_gauges_cluster_scope_shows_no_namespace() -> None:
    metric_families = {
        family.name: family for family in collect_operator_gauges({}, None, True, NamespaceRegistry([None]))
    }
    assert metric_families["finetune_operator_namespace_readable"].samples == []


def _build_cache_of_two_teams(build: type[Builders]) -> FineTuneJobCache:
    cache = FineTuneJobCache()
    for team in ("team-a", "team-b"):
        body = build.finetunejob("bot", uid=f"{team}-bot")
        meta = {**body["metadata"], "namespace": team, "resourceVersion": "5"}
        cache.finetunejobs.update(build_key("bot", team), {**body, "metadata": meta, "status": {"phase": "Running"}})
    return cache


def test_cache_list_of_one_namespace_keeps_other_namespace(build: type[Builders]) -> None:
    cache = _build_cache_of_two_teams(build)
    cache.finetunejobs.replace({"team-b": ListSnapshot(set(), 9)})
    assert cache.finetunejobs.list_keys() == [build_key("bot", "team-a")]


def test_cache_drop_namespace_keeps_other_namespace(build: type[Builders]) -> None:
    cache = _build_cache_of_two_teams(build)
    cache.finetunejobs.drop_namespace("team-b")
    assert cache.finetunejobs.list_keys() == [build_key("bot", "team-a")]


def test_cache_unreadable_namespace_is_neither_open_nor_shown(build: type[Builders]) -> None:
    cache = _build_cache_of_two_teams(build)
    cache.unreadable_namespaces = {"team-b"}
    assert cache.list_active_keys() == [build_key("bot", "team-a")]
    assert len(cache.finetunejobs) == 2
    (jobs, *_) = collect_job_gauges(cache, 10)
    assert [sample.labels["namespace"] for sample in jobs.samples] == ["team-a"]


def test_object_cache_keeps_highest_resource_version(build: type[Builders]) -> None:
    cache = ObjectCache(transform.strip_finetunejob)
    body = build.finetunejob()
    cache.update(build_key(), {**body, "metadata": {**body["metadata"], "resourceVersion": "7"}})
    assert cache.highest_version == 7
    cache.replace({None: ListSnapshot(set(), 12)})
    assert cache.highest_version == 12
    cache.clear()
    assert (cache.highest_version, len(cache)) == (0, 0)
