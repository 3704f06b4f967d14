"""FineTuneJobs that no schema has looked at: whatever stands in them, the operator lives, and serves the others."""

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
from tests.operator import api_server as api
from tests.operator import samples
from tests.operator.bodies import Body, manifest, stored

from finetune_operator.api import GROUP, PLURAL
from finetune_operator.controller import state_collector
from finetune_operator.kube import transform
from finetune_operator.kube.cache import InformerCache, get_object_key

if TYPE_CHECKING:
    from tests.operator.world import World

AT_ONCE, ROUNDS = 40, 5
_CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{PLURAL}.{GROUP}"
_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

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


def _paths(value: object, path: samples.Path = ()) -> Iterator[samples.Path]:
    """Of everything in a body, whatever it is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*path, key)
        yield from _paths(each, (*path, key))


STATUS: Body = {
    "phase": "Running", "attempts": 1, "jobName": "bot", "observedGeneration": 1,
    "progress": {"step": 1, "percentage": 4, "loss": 0.5}, "lastCheckpointTime": "2026-11-23T08:00:00Z",
    "conditions": [{"type": "Complete", "status": "True", "reason": "x", "message": "", "lastTransitionTime": "x"}],
}  # fmt: skip


@st.composite
def _changed(draw: st.DrawFn, whole: samples.Json) -> samples.Json:
    """A good one, of which up to three values are of any kind."""
    for path in draw(st.lists(st.sampled_from(list(_paths(whole))), min_size=1, max_size=3, unique=True)):
        try:
            whole = samples.replaced(whole, path, draw(JSON))
        except (KeyError, TypeError, AttributeError, IndexError):
            continue  # the one before has taken its place away
    return whole


SPECS = st.one_of(_changed(samples.full_spec()), _changed(manifest()["spec"]), JSON)
STATUSES = st.one_of(_changed(STATUS), JSON)
BODIES = st.tuples(SPECS, st.none() | STATUSES)


def _from_a_list(store: InformerCache, body: Body) -> None:
    raw = msgspec.Raw(msgspec.json.encode(body))
    head = transform.decode_head(raw)
    store.finetunejobs.add_if_newer(get_object_key(head), head, lambda: transform.decode_finetunejob(raw, head))


def _from_a_watch(store: InformerCache, body: Body) -> None:
    store.finetunejobs.update(get_object_key(body), body)


@pytest.mark.parametrize("take", [_from_a_list, _from_a_watch])
@given(SPECS, STATUSES)
@example(None, {**STATUS, "progress": None})
@example(None, {**STATUS, "progress": {"percentage": "x"}})
@example(None, {**STATUS, "lastCheckpointTime": 4})
def test_the_store_takes_in_whatever_it_is_given(
    take: Callable[[InformerCache, Body], None], spec: object, status: object
) -> None:
    """And it can still be counted, worked on and told of."""
    store = InformerCache()
    take(store, {**stored(), "spec": spec, "status": status})
    assert len(store.finetunejobs) == 1
    list(state_collector.collect_job_gauges(store, 10))
    store.list_active_keys()


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One of whose CRD the schema was taken out."""
    with api.serve(tmp_path_factory.mktemp("lawless")) as url:
        asyncio.run(_take_the_schema_out(url))
        yield url


async def _take_the_schema_out(url: str) -> None:
    change = [{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": _OPEN}]
    async with api.session() as session:
        kind = {"Content-Type": "application/json-patch+json"}
        async with session.patch(url + _CRD, json=change, headers=kind) as answer:
            assert answer.status == 200, await answer.text()
        while not await _takes_anything(session, url):
            await asyncio.sleep(0.1)


async def _takes_anything(session: aiohttp.ClientSession, url: str) -> bool:
    path = f"{url}/apis/{GROUP}/v1alpha1/namespaces/default/{PLURAL}?dryRun=All"
    async with session.post(path, json=manifest(namespace="default") | {"spec": 1}) as answer:
        return answer.status == 201


@pytest.mark.cluster
@pytest.mark.timeout(300)
@settings(
    max_examples=ROUNDS, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None
)
@given(st.data())
async def test_each_is_refused_or_run_and_the_next_is_served(world: World, data: st.DataObject) -> None:
    names = {f"poison-{secrets.token_hex(4)}": data.draw(BODIES) for _ in range(AT_ONCE)}
    for name, (spec, status) in names.items():
        await world.call("POST", world.path("finetunejobs"), manifest(name, world.namespace) | {"spec": spec})
        if status is not None:
            await world.call("PATCH", world.path("finetunejobs", name, "status"), {"status": status})
    new = [name for name, (_, status) in names.items() if status is None]
    for _ in ("first", "again"):
        async with world.operator() as operator:
            await world.until(lambda: _are_settled(world, new))
            good = f"good-{secrets.token_hex(4)}"
            await world.apply(good)
            await world.reason("JobCreated", good)
            assert operator.check_liveness()["role"] == "leader"
            list(operator.collect())
    await _clear(world)


IN_TWO_WAYS: dict[str, Body] = {
    "a word for true": {"suspend": "true"},
    "a number as text": {"backoffLimit": "2"},
    "a number as text, below": {"training": {"stallSeconds": "60"}},
}


@pytest.mark.cluster
@pytest.mark.parametrize("spec", IN_TWO_WAYS.values(), ids=IN_TWO_WAYS)
async def test_what_may_be_read_in_two_ways_is_refused(world: World, spec: Body) -> None:
    async with world.operator():
        await world.apply(spec=spec)
        await world.reason("InvalidSpec")
    assert await world.all("jobs") == []


async def _are_settled(world: World, names: list[str]) -> bool:
    """Whether each has a Job, was told why not, or is gone, for it asked to be deleted after its end."""
    jobs = {each["metadata"]["name"] for each in await world.all("jobs")}
    told = {each["metadata"]["name"]: each.get("status") or {} for each in await world.all("finetunejobs")}
    return all(name in jobs or name not in told or told[name].get("conditions") for name in names)


async def _clear(world: World) -> None:
    for plural in ("finetunejobs", "jobs", "services"):
        for each in await world.all(plural):
            await world.delete(plural, each["metadata"]["name"])


@pytest.mark.cluster
async def test_stage_of_a_newer_trainer_in_a_stored_status_stops_nothing(world: World) -> None:
    """As after a downgrade of the operator: progress is only shown, the rest of the status counts."""
    await world.apply()
    progress = {"stage": "Teleporting", "lastUpdateTime": "2026-11-23T08:00:00Z"}
    stored_status = {"status": {"attempts": 2, "progress": progress}}
    await world.call("PATCH", world.path("finetunejobs", "bot", "status"), stored_status)
    async with world.operator():
        status = await world.reason("JobCreated")
    assert status["attempts"] == 2
