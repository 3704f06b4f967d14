"""The lifecycle section of a stored FineTuneJob's spec: suspension, deadlines, retries, GPUs.

It is read from the stored object as it is, because the spec may come from another version. The API server has written
the defaults.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

Body = dict[str, Any]


class Wanted(NamedTuple):
    """The fields of the spec that the operator needs as long as the run lasts."""

    suspend: bool = False
    backoff_limit: int = 3
    startup_deadline: int | None = None
    active_deadline: int | None = None
    ttl: int | None = None
    gpus: int = 1
    """GPUs of each pod."""
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
    """Return the policy of a stored FineTuneJob, or the defaults if its spec cannot be read: then no Job is created."""
    try:
        return read(body)
    except msgspec.ValidationError:
        return Wanted()


def read(body: Body) -> Wanted:
    """Return the policy of a stored FineTuneJob that a Job is created for.

    Raises `msgspec.ValidationError` if the spec cannot be read.
    """
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
