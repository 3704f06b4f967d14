"""FineTuneJobs that were stored without a schema: whatever they contain, the operator reconciles the others."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tests.support.operator import api_server as api
from tests.support.operator import spec_samples
from tests.support.operator.builders import Body, build_finetunejob, build_key, build_manifest, get_cache

from finetune_operator.api import GROUP, PLURAL
from finetune_operator.controller.finetunejob import gauges
from finetune_operator.kube import transform
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache, get_finetunejob_key
from finetune_operator.observed.objects import is_managed_elsewhere

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

    from finetune_operator.manager import Manager

OBJECTS_PER_ROUND, ROUNDS = 40, 5
_CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{PLURAL}.{GROUP}"
_OPEN_SCHEMA = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

WORDS = st.one_of(
    st.sampled_from(["", "\0", "s3://b/k", "hf://a/b", "../..", "$(HOME)", "-1", "1e999", "2026-13-45T99:99:99Z"]),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)


def _iter_paths(value: object, path: spec_samples.FieldPath = ()) -> Iterator[spec_samples.FieldPath]:
    """Yield the paths of all values in an object."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _iter_paths(item, (*path, key))


STATUS: Body = {
    "phase": "Running", "attempts": 1, "jobName": "bot", "observedGeneration": 1,
    "progress": {"step": 1, "percentage": 4, "loss": 0.5}, "lastCheckpointTime": "2026-11-23T08:00:00Z",
    "conditions": [{"type": "Complete", "status": "True", "reason": "x", "message": "", "lastTransitionTime": "x"}],
}  # fmt: skip


@st.composite
def _draw_changed(draw: st.DrawFn, value: spec_samples.Json) -> spec_samples.Json:
    """Draw a valid object with up to three arbitrary values."""
    for path in draw(st.lists(st.sampled_from(list(_iter_paths(value))), min_size=1, max_size=3, unique=True)):
        try:
            value = spec_samples.replace_at(value, path, draw(JSON))
        except (KeyError, TypeError, AttributeError, IndexError):
            continue  # the one before has taken its place away
    return value


SPECS = st.one_of(_draw_changed(spec_samples.build_full_spec()), _draw_changed(build_manifest()["spec"]), JSON)
STATUSES = st.one_of(_draw_changed(STATUS), JSON)
BODIES = st.tuples(SPECS, st.none() | STATUSES)


def _load_from_list(cache: FineTuneJobCache, body: Body) -> None:
    raw = msgspec.Raw(msgspec.json.encode(body))
    head = transform.decode_head(raw)
    cache.finetunejobs.add_if_newer(get_finetunejob_key(head), head, lambda: transform.decode_finetunejob(raw, head))


def _load_from_watch(cache: FineTuneJobCache, body: Body) -> None:
    cache.finetunejobs.update(get_finetunejob_key(body), body)


@pytest.mark.parametrize("take", [_load_from_list, _load_from_watch])
@given(SPECS, STATUSES)
@example(None, {**STATUS, "progress": None})
@example(None, {**STATUS, "progress": {"percentage": "x"}})
@example(None, {**STATUS, "lastCheckpointTime": 4})
def test_cache_arbitrary_object_is_stored_and_counted(
    take: Callable[[FineTuneJobCache, Body], None], spec: object, status: object
) -> None:
    """A cached object can also be counted, reconciled and exposed."""
    cache = FineTuneJobCache()
    take(cache, {**build_finetunejob(), "spec": spec, "status": status})
    assert len(cache.finetunejobs) == (not is_managed_elsewhere({"spec": spec}))
    list(gauges.collect_job_gauges(cache, 10))
    cache.list_active_keys()


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of an API server whose CRD has no schema."""
    with api.run_api_server(tmp_path_factory.mktemp("lawless")) as url:
        asyncio.run(_remove_crd_schema(url))
        yield url


async def _remove_crd_schema(url: str) -> None:
    change = [
        {"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": _OPEN_SCHEMA},
        {"op": "remove", "path": "/spec/versions/0/selectableFields"},  # the schema must contain them
    ]
    async with api.open_session() as session:
        headers = {"Content-Type": "application/json-patch+json"}
        async with session.patch(url + _CRD, json=change, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
        while not await _accepts_any_spec(session, url):
            await asyncio.sleep(0.1)


async def _accepts_any_spec(session: aiohttp.ClientSession, url: str) -> bool:
    path = f"{url}/apis/{GROUP}/v1alpha1/namespaces/default/{PLURAL}?dryRun=All"
    async with session.post(path, json=build_manifest(namespace="default") | {"spec": 1}) as answer:
        return answer.status == 201


@pytest.mark.cluster
@pytest.mark.timeout(300)
@settings(
    max_examples=ROUNDS, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None
)
@given(st.data())
async def test_operator_schemaless_object_is_handled_and_next_is_served(
    world: NamespaceHarness, data: st.DataObject
) -> None:
    names = {f"poison-{secrets.token_hex(4)}": data.draw(BODIES) for _ in range(OBJECTS_PER_ROUND)}
    for name, (spec, status) in names.items():
        await world.call("POST", world.path("finetunejobs"), build_manifest(name, world.namespace) | {"spec": spec})
        if status is not None:
            await world.call("PATCH", world.path("finetunejobs", name, "status"), {"status": status})
    new = [name for name, (_, status) in names.items() if status is None]
    for _ in ("first", "again"):
        async with world.run_operator() as operator:
            await world.wait_until(lambda: _are_settled(world, operator, new))
            good = f"good-{secrets.token_hex(4)}"
            await world.create_finetunejob(good)
            await world.wait_for_reason("JobCreated", good)
            assert operator.check_liveness()["role"] == "leader"
            list(operator.collect())
    await _delete_all(world)


AMBIGUOUS_SPECS: dict[str, Body] = {
    "a word for true": {"suspend": "true"},
    "a number as text": {"backoffLimit": "2"},
    "a number as text, below": {"training": {"stallSeconds": "60"}},
}


@pytest.mark.cluster
@pytest.mark.parametrize("spec", AMBIGUOUS_SPECS.values(), ids=AMBIGUOUS_SPECS)
async def test_operator_ambiguous_value_is_invalid_spec(world: NamespaceHarness, spec: Body) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec=spec)
        await world.wait_for_reason("InvalidSpec")
    assert await world.list_objects("jobs") == []


async def _are_settled(world: NamespaceHarness, operator: Manager, names: list[str]) -> bool:
    """Return whether each has a Job, a reason why not, is left alone, or is deleted after its TTL."""
    jobs = {job["metadata"]["name"] for job in await world.list_objects("jobs")}
    left_alone = {key.name for key in get_cache(operator).unreadable_objects}
    statuses = {
        finetunejob["metadata"]["name"]: finetunejob.get("status") or {}
        for finetunejob in await world.list_objects("finetunejobs")
        if not is_managed_elsewhere(finetunejob)
    }
    unsettled = statuses.keys() - jobs - left_alone
    return all(statuses[name].get("conditions") for name in names if name in unsettled)


NEWER_STATUSES: dict[str, Body] = {
    "newer-phase": {"phase": "Hibernating"},
    "newer-condition": {"phase": "Running", "conditions": [{**STATUS["conditions"][0], "type": "Archived"}]},
    "newer-type": {"attempts": {"first": 1}},
}
NEWER_SPECS: dict[str, Body] = {
    "newer-field": {"hibernate": True},
    "newer-nested-field": {"training": {"forgetting": "none"}},
    "newer-value": {"training": {"method": "telepathy"}},
}


@pytest.mark.cluster
async def test_operator_object_of_newer_version_is_left_alone_and_counted(
    world: NamespaceHarness, caplog: pytest.LogCaptureFixture
) -> None:
    for name, spec in NEWER_SPECS.items():
        await world.create_finetunejob(name, spec)
    for name, status in NEWER_STATUSES.items():
        await world.create_finetunejob(name)
        await world.call("PATCH", world.path("finetunejobs", name, "status"), {"status": status})
    names = {*NEWER_SPECS, *NEWER_STATUSES}
    before = await _list_versions(world)
    async with world.run_operator() as operator:

        async def are_counted() -> bool:
            return _count_unreadable(operator, world.namespace) == len(names)

        await world.wait_until(are_counted)
        for _ in range(2):
            for name in names:
                operator.workers.enqueue(build_key(name, world.namespace))
            await world.create_finetunejob(good := f"good-{secrets.token_hex(4)}")
            await world.wait_for_reason("JobCreated", good)
        assert {name: version for name, version in (await _list_versions(world)).items() if name in names} == before
        assert [
            job["metadata"]["name"] for job in await world.list_objects("jobs") if job["metadata"]["name"] in names
        ] == []
        for name in names:
            await world.delete("finetunejobs", name)

        async def is_none_counted() -> bool:
            return _count_unreadable(operator, world.namespace) == 0

        await world.wait_until(is_none_counted)
    messages = [record.getMessage() for record in caplog.records]
    assert len([message for message in messages if "written by a newer version" in message]) == len(names)
    assert not [message for message in messages if "unhandled error" in message]


async def _list_versions(world: NamespaceHarness) -> dict[str, str]:
    bodies = await world.list_objects("finetunejobs")
    return {body["metadata"]["name"]: body["metadata"]["resourceVersion"] for body in bodies}


def _count_unreadable(operator: Manager, namespace: str) -> float:
    samples = (
        sample
        for metric in operator.collect()
        if metric.name == "finetune_unreadable_objects"
        for sample in metric.samples
    )
    return sum(sample.value for sample in samples if sample.labels["namespace"] == namespace)


async def _delete_all(world: NamespaceHarness) -> None:
    for plural in ("finetunejobs", "jobs", "services"):
        for body in await world.list_objects(plural):
            await world.delete(plural, body["metadata"]["name"])


@pytest.mark.cluster
async def test_operator_unknown_stage_in_stored_status_is_ignored(world: NamespaceHarness) -> None:
    """As after a downgrade of the operator. The progress is only displayed, the rest of the status is used."""
    await world.create_finetunejob()
    progress = {"stage": "Teleporting", "lastUpdateTime": "2026-11-23T08:00:00Z"}
    stored_status = {"status": {"attempts": 2, "progress": progress}}
    await world.call("PATCH", world.path("finetunejobs", "bot", "status"), stored_status)
    async with world.run_operator():
        status = await world.wait_for_reason("JobCreated")
    assert status["attempts"] == 2
