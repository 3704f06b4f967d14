"""What a FineTuneJob asks of its lifecycle. Read from the stored object as it is, for its spec may be of another
version; the API server has written the defaults. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

Body = dict[str, Any]


class Wanted(NamedTuple):
    """The part of the spec that is looked at as long as the run lasts."""

    suspend: bool = False
    backoff_limit: int = 3
    startup_deadline: int | None = None
    active_deadline: int | None = None
    ttl: int | None = None
    gpus: int = 1
    """Of each pod."""
    stall: int = 1800
    """`training.stallSeconds`."""
    nodes: int = 1


class _Compute(msgspec.Struct, rename="camel"):
    nodes: int = Wanted().nodes
    gpus_per_node: int = Wanted().gpus


class _Training(msgspec.Struct, rename="camel"):
    stall_seconds: int = Wanted().stall


class _Spec(msgspec.Struct, rename="camel"):
    suspend: bool = Wanted().suspend
    backoff_limit: int = Wanted().backoff_limit
    startup_deadline_seconds: int | None = None
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None
    compute: _Compute = msgspec.field(default_factory=_Compute)
    training: _Training = msgspec.field(default_factory=_Training)


def wanted(body: Body) -> Wanted:
    """Of a stored FineTuneJob. One that cannot be read asks for nothing: no Job is made of it."""
    try:
        return read(body)
    except msgspec.ValidationError:
        return Wanted()


def read(body: Body) -> Wanted:
    """The same, of one that a Job is made of. Raises `msgspec.ValidationError` if it cannot be read."""
    spec = msgspec.convert(body["spec"], _Spec)
    return Wanted(
        suspend=spec.suspend,
        backoff_limit=spec.backoff_limit,
        startup_deadline=spec.startup_deadline_seconds,
        active_deadline=spec.active_deadline_seconds,
        ttl=spec.ttl_seconds_after_finished,
        gpus=spec.compute.gpus_per_node,
        stall=spec.training.stall_seconds,
        nodes=spec.compute.nodes,
    )
