"""What a command is about: a run, a schedule or a sweep, as `NAME`, `schedule/NAME` or `sweep/NAME`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_USAGE

if TYPE_CHECKING:
    from finetune_cli.session import Session
    from finetune_operator.client import Resource

JOB, SCHEDULE, SWEEP = "job", "schedule", "sweep"
_PREFIXES = {
    **dict.fromkeys(("job", "ftj", "finetunejob", "finetunejobs"), JOB),
    **dict.fromkeys(("schedule", "fts", "finetuneschedule", "finetuneschedules"), SCHEDULE),
    **dict.fromkeys(("sweep", "ftsw", "finetunesweep", "finetunesweeps"), SWEEP),
}
"""What may be before the slash: the names of this program and those of kubectl."""


class Target(NamedTuple):
    """An object: its kind, which is `job`, `schedule` or `sweep`, and its name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return self.name if self.kind == JOB else f"{self.kind} {self.name}"

    def get_resource(self, session: Session) -> Resource[Any]:
        """Return the objects of this kind in the cluster."""
        client = session.client
        resources: dict[str, Resource[Any]] = {JOB: client.jobs, SCHEDULE: client.schedules, SWEEP: client.sweeps}
        return resources[self.kind]


def parse_target(text: str) -> Target:
    """Parse `NAME` or `KIND/NAME`. Raises `CommandError`."""
    prefix, slash, name = text.rpartition("/")
    kind = _PREFIXES.get(prefix.lower()) if slash else JOB
    if kind is None or not name:
        message = f"{text!r} is not a name: use NAME for a run, schedule/NAME or sweep/NAME"
        raise CommandError(message, EXIT_USAGE)
    return Target(kind, name)
