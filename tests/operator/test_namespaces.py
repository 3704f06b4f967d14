"""What is known of each watched namespace, and what of it is kept, shown and worked on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from finetune_operator.controller import state_collector
from finetune_operator.kube import transform
from finetune_operator.kube.cache import InformerCache, ListSnapshot, ObjectCache
from finetune_operator.kube.namespace_access import NamespaceRegistry

if TYPE_CHECKING:
    from tests.operator.bodies import Build

FORBIDDEN = PermissionError("403 Forbidden: cannot list pods")
TIMEOUT = TimeoutError("no answer")


def test_namespaces_refused_twice_log_the_change_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    namespaces = NamespaceRegistry(["team-a", "team-b"])
    namespaces.record_list("team-a")
    for _ in range(3):
        namespaces.record_unreadable("team-b", FORBIDDEN)
    namespaces.record_list("team-b")
    refused, back = (record.getMessage() for record in caplog.records)
    assert "team-b" in refused
    assert "cannot list pods" in refused
    assert "watchNamespaces" in refused
    assert back == "namespace team-b can be read again"


def test_namespaces_all_refused_log_an_error(caplog: pytest.LogCaptureFixture) -> None:
    namespaces = NamespaceRegistry(["team-a", "team-b"])
    namespaces.record_unreadable("team-a", FORBIDDEN)
    assert not [record for record in caplog.records if record.levelno == logging.ERROR]
    namespaces.record_unreadable("team-b", FORBIDDEN)
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1


def test_silence_counts_the_newest_list_of_a_readable_namespace() -> None:
    namespaces = NamespaceRegistry(["team-a", "team-b", "team-c"])
    namespaces.record_list("team-a")
    namespaces.record_failure("team-b", TIMEOUT)
    namespaces.record_unreadable("team-c", FORBIDDEN)
    for name, age in (("team-a", 100), ("team-b", 500), ("team-c", 0)):
        namespaces.states[name].last_contact -= age
    assert 99 < namespaces.compute_silence_seconds() < 110


def test_silence_of_refused_namespaces_counts_the_refusals() -> None:
    namespaces = NamespaceRegistry(["team-a"])
    namespaces.states["team-a"].last_contact -= 1000
    namespaces.record_unreadable("team-a", FORBIDDEN)
    assert namespaces.compute_silence_seconds() < 10


def test_unlisted_names_what_has_to_be_tried_again() -> None:
    namespaces = NamespaceRegistry(["team-a", "team-b", "team-c", "team-d"])
    namespaces.record_list("team-a")
    namespaces.record_unreadable("team-b", FORBIDDEN)
    namespaces.record_failure("team-c", TIMEOUT)
    assert namespaces.get_failed_scopes() == ["team-b", "team-c", "team-d"]
    assert namespaces.get_unreadable() == {"team-b"}
    assert namespaces.get_list_errors() == [TIMEOUT]


def test_gauge_shows_each_configured_namespace() -> None:
    namespaces = NamespaceRegistry(["team-a", "team-b"])
    namespaces.record_unreadable("team-b", FORBIDDEN)
    found = {
        each.name: each for each in state_collector.collect_operator_gauges(InformerCache(), None, True, namespaces)
    }
    samples = found["finetune_operator_namespace_readable"].samples
    assert {each.labels["namespace"]: each.value for each in samples} == {"team-a": 1, "team-b": 0}


def test_gauge_of_the_whole_cluster_is_empty() -> None:
    found = {
        each.name: each
        for each in state_collector.collect_operator_gauges(InformerCache(), None, True, NamespaceRegistry([]))
    }
    assert found["finetune_operator_namespace_readable"].samples == []


def _two_teams(build: type[Build]) -> InformerCache:
    store = InformerCache()
    for team in ("team-a", "team-b"):
        body = build.stored("bot", uid=f"{team}-bot")
        meta = {**body["metadata"], "namespace": team, "resourceVersion": "5"}
        store.finetunejobs.update((team, "bot"), {**body, "metadata": meta, "status": {"phase": "Running"}})
    return store


def test_list_of_one_namespace_drops_nothing_of_another(build: type[Build]) -> None:
    store = _two_teams(build)
    store.finetunejobs.replace({"team-b": ListSnapshot(set(), 9)})
    assert store.finetunejobs.list_keys() == [("team-a", "bot")]


def test_drop_namespace_forgets_that_namespace_only(build: type[Build]) -> None:
    store = _two_teams(build)
    store.finetunejobs.drop_namespace("team-b")
    assert store.finetunejobs.list_keys() == [("team-a", "bot")]


def test_unreadable_namespace_is_neither_worked_on_nor_shown(build: type[Build]) -> None:
    store = _two_teams(build)
    store.unreadable_namespaces = {"team-b"}
    assert store.list_active_keys() == [("team-a", "bot")]
    assert len(store.finetunejobs) == 2
    (jobs, *_) = state_collector.collect_job_gauges(store, 10)
    assert [each.labels["namespace"] for each in jobs.samples] == ["team-a"]


def test_shelf_remembers_the_highest_version_of_bodies_and_lists(build: type[Build]) -> None:
    shelf = ObjectCache(transform.strip_finetunejob)
    body = build.stored()
    shelf.update(("team", "bot"), {**body, "metadata": {**body["metadata"], "resourceVersion": "7"}})
    assert shelf.highest_version == 7
    shelf.replace({None: ListSnapshot(set(), 12)})
    assert shelf.highest_version == 12
    shelf.clear()
    assert (shelf.highest_version, len(shelf)) == (0, 0)
