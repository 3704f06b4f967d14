"""What a FineTuneJob asks of its lifecycle. Read from the stored object as it is, for its spec may be of another
version; the API server has written the defaults. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def wanted(body: Body) -> Wanted:
    """Of a stored FineTuneJob."""
    spec, default = body["spec"], Wanted()
    return Wanted(
        suspend=spec.get("suspend", default.suspend),
        backoff_limit=spec.get("backoffLimit", default.backoff_limit),
        startup_deadline=spec.get("startupDeadlineSeconds"),
        active_deadline=spec.get("activeDeadlineSeconds"),
        ttl=spec.get("ttlSecondsAfterFinished"),
        gpus=spec.get("compute", {}).get("gpusPerNode", default.gpus),
        stall=spec.get("training", {}).get("stallSeconds", default.stall),
    )
