"""Results of checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_operator.client.cluster_reader import ClusterReader


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"
    """A run needs this."""
    UNKNOWN = "unknown"
    """The user is not allowed to see it."""


@dataclass(frozen=True)
class Finding:
    """The result of a check: one sentence that says what is there, or how to provide it."""

    level: Level
    check: str
    message: str


@dataclass(frozen=True)
class Subject:
    """What is examined."""

    api: ClusterReader
    namespace: str


Check = Callable[[Subject], Iterable[Finding]]


def run_checks(subject: Subject, checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Yield the findings of checks with their names. A check that the user has no rights for is `UNKNOWN`."""
    from finetune_operator.client.cluster_reader import NotPermitted

    for name, check in checks:
        try:
            yield from check(subject)
        except NotPermitted:
            yield Finding(Level.UNKNOWN, name, "you are not allowed to see this; ask an administrator of the cluster")
