"""Reads the alias of a FineTuneSchedule, and verifies its signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.alias_signature import SignatureInvalidError, verify_alias
from finetune_trainer.records.champion_alias import ChampionAlias, describe_content
from finetune_trainer.storage import S3, Location, read_object

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey


def read_alias(s3: S3, location: Location, key: EllipticCurvePublicKey | None) -> ChampionAlias | None:
    """Return the alias at a location, or None if there is no object. With a key, it must be signed with it.

    Raises `ALIAS_CONFLICT` for other content, and for a signature that is missing or wrong.
    """
    content = read_object(s3, location)
    if content is None:
        return None
    try:
        alias = ChampionAlias.model_validate_json(content)
    except ValidationError as error:
        message = f"{location} contains {describe_content(content)}, not the alias of a FineTuneSchedule"
        raise TrainerError(Reason.ALIAS_CONFLICT, message) from error
    if key is None:
        return alias
    try:
        return verify_alias(content, key)
    except SignatureInvalidError as error:
        message = f"{location} for the run {alias.run} is not used: {error}"
        raise TrainerError(Reason.ALIAS_CONFLICT, message) from error
