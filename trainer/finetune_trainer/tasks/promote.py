"""Writes the alias of a FineTuneSchedule, which names the champion. Nobody else's content is replaced unasked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from pydantic import ValidationError

from finetune_trainer.contract import PromoteReport, PromoteTask, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.alias_signature import SignatureInvalidError, sign_alias, verify_alias
from finetune_trainer.publishing.published_result import read_manifest
from finetune_trainer.publishing.signing_key import load_signing_key
from finetune_trainer.records.champion_alias import ChampionAlias, describe_content
from finetune_trainer.storage import (
    S3,
    ConditionalWritesUnsupported,
    Location,
    ObjectWithETag,
    create_object,
    put_bytes,
    read_with_etag,
    replace_object,
)
from finetune_trainer.storage.retry import (
    ALIAS_ATTEMPTS,
    CONDITIONAL_WRITE_ATTEMPTS,
    retry_on_error,
    retry_until_true,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

log = logging.getLogger(__name__)


def promote(s3: S3, task: PromoteTask) -> PromoteReport:
    """Write the alias, or find that it names the champion already. Can be repeated after an interruption.

    Raises `ALIAS_CONFLICT` if the object contains something else than the task expects, `MODEL_NOT_FOUND` or
    `STORAGE_CORRUPT` if the champion is not at its URI, `AUTH_FAILED` for a key that cannot sign, and `OUTPUT_BUSY` if
    others keep writing the object at the same time.
    """
    key = load_signing_key(task.signing) if task.signing else None
    read_manifest(s3, task.champion.adapter_uri, task.champion.digest)  # an alias names nothing that is not there
    report = retry_until_true(_AliasWriter(s3, task, key).try_write, ALIAS_ATTEMPTS)
    if report is None:
        raise TrainerError(Reason.OUTPUT_BUSY, f"{task.alias_uri}: others write this object at the same time")
    return report


@dataclass(frozen=True)
class _AliasWriter:
    s3: S3
    task: PromoteTask
    key: EllipticCurvePrivateKey | None

    @cached_property
    def _location(self) -> Location:
        return Location.parse(self.task.alias_uri)

    @cached_property
    def _alias(self) -> ChampionAlias:
        alias = ChampionAlias.from_task(self.task)
        return sign_alias(alias, self.key) if self.key else alias

    def try_write(self) -> PromoteReport | None:
        """Return the report if the store has the alias, None after a write, whether it was accepted or rejected.

        What the store has is read again after each write. This covers rejected writes, lost responses, and stores that
        ignore conditions, where the last writer wins.
        """
        stored = read_with_etag(self.s3, self._location)
        alias = _parse(stored.content) if stored else None
        if stored and alias and self._is_written(alias, stored.content):
            return PromoteReport(etag=stored.etag.strip('"'), signed=alias.signature is not None)
        if stored and not self.task.overwrite and not self._is_replaceable(alias):
            raise self._conflict_error(stored.content)
        self._write(stored)
        return None

    def _is_written(self, alias: ChampionAlias, content: bytes) -> bool:
        """Return whether the object names the champion, with a signature of this key if the task has one."""
        if (alias.schedule, alias.run) != (self.task.schedule, self.task.champion.run):
            return False
        return alias.is_same_result(self._alias) and (self.key is None or _is_signed(content, self.key))

    def _is_replaceable(self, alias: ChampionAlias | None) -> bool:
        """Return whether the object names the predecessor, or the champion in another way."""
        if alias is None or alias.schedule != self.task.schedule:
            return False
        return any(map(alias.is_same_result, filter(None, (self._alias.predecessor, self._alias))))

    def _conflict_error(self, content: bytes) -> TrainerError:
        expected = " or ".join(each.run for each in (self.task.predecessor, self.task.champion) if each)
        message = (
            f"{self._location} contains {describe_content(content)}, not the alias of the schedule "
            f"{self.task.schedule} for the run {expected}; set spec.champion.run, which replaces the object, or "
            "another spec.alias.uri"
        )
        return TrainerError(Reason.ALIAS_CONFLICT, message)

    def _write(self, stored: ObjectWithETag | None) -> None:
        content = self._alias.to_bytes()
        write = (
            partial(replace_object, self.s3, self._location, content, stored.etag)
            if stored
            else partial(create_object, self.s3, self._location, content)
        )
        try:
            retry_on_error(write, TrainerError, CONDITIONAL_WRITE_ATTEMPTS, _is_unreachable)
        except ConditionalWritesUnsupported:
            log.warning("alias: the store does not support conditional writes; of two writers the last one wins")
            put_bytes(self.s3, self._location, content)


def _parse(content: bytes) -> ChampionAlias | None:
    try:
        return ChampionAlias.model_validate_json(content)
    except ValidationError:
        return None


def _is_signed(content: bytes, key: EllipticCurvePrivateKey) -> bool:
    try:
        verify_alias(content, key.public_key())
    except SignatureInvalidError:
        return False
    return True


def _is_unreachable(error: TrainerError) -> bool:
    return error.reason is Reason.STORAGE_UNREACHABLE
