"""Counts attempts of a run at a step during which the process may be killed, such as a merge, in an object in S3."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import ConfigDict, ValidationError

from finetune_trainer.config.run_id import get_run_id
from finetune_trainer.contract import Model, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import S3, Location, delete_objects, put_bytes, read_object

log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 2


class AttemptRecord(Model):
    """Number of attempts of a run that have begun the step."""

    model_config = ConfigDict(extra="ignore")

    run_id: str
    attempts: int

    def to_bytes(self) -> bytes:
        """Serialize the record as it is stored."""
        return self.model_dump_json(by_alias=True).encode()


@dataclass(frozen=True)
class AttemptCounter:
    """The object with the number of attempts."""

    s3: S3
    location: Location
    activity: str
    """What the attempts do, as the end of "attempts were killed while they"."""

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count an attempt in the block. The count remains only if the process is killed.

        Raises `OUT_OF_MEMORY` after two such attempts of this run, so that a run without enough memory for the step
        ends with its adapter and does not fail.
        """
        previous = self._read()
        if previous.run_id == get_run_id() and previous.attempts >= _MAX_ATTEMPTS:
            delete_objects(self.s3, [self.location])
            message = (
                f"{_MAX_ATTEMPTS} attempts were killed while they {self.activity}; increase the memory in "
                "compute.resources"
            )
            raise TrainerError(Reason.OUT_OF_MEMORY, message)
        attempts = previous.attempts + 1 if previous.run_id == get_run_id() else 1
        put_bytes(self.s3, self.location, AttemptRecord(run_id=get_run_id(), attempts=attempts).to_bytes())
        try:
            yield
        finally:
            self._remove()

    def _read(self) -> AttemptRecord:
        try:
            return AttemptRecord.model_validate_json(read_object(self.s3, self.location) or b"")
        except ValidationError:
            return AttemptRecord(run_id="", attempts=0)

    def _remove(self) -> None:
        try:
            delete_objects(self.s3, [self.location])
        except TrainerError as error:
            log.warning("publish: could not remove %s: %s", self.location, error.message)
