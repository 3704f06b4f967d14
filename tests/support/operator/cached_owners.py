"""FineTuneSchedules and FineTuneSweeps as the API server returns them, and a cache with them."""

from __future__ import annotations

from typing import Any

from tests.support.operator.builders import Body

from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.api.sweep import SWEEP_KIND
from finetune_operator.kube.client import FINETUNESCHEDULES, FINETUNESWEEPS
from finetune_operator.kube.owner_cache import OwnerCache

_RESOURCES = {SCHEDULE_KIND: FINETUNESCHEDULES, SWEEP_KIND: FINETUNESWEEPS}


def build_schedule(
    name: str = "bot", namespace: str = "team", spec: Body | None = None, status: Body | None = None, **metadata: Any
) -> Body:
    """Build the metadata, and as much of spec and status as a test needs."""
    meta = {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", **metadata}
    return {"kind": SCHEDULE_KIND, "metadata": meta, "spec": spec or {}, "status": status or {}}


def build_sweep(name: str = "lr", spec: Body | None = None, status: Body | None = None) -> Body:
    """Do the same for a FineTuneSweep."""
    return {**build_schedule(name, spec=spec, status=status), "kind": SWEEP_KIND}


def cache_owners(kind: str, *bodies: Body) -> OwnerCache:
    """Return a cache with these objects of a kind."""
    cache = OwnerCache(kind, _RESOURCES[kind])
    for body in bodies:
        cache.owners.update(cache.get_key(body), body)
    return cache
