"""Signs aliases of FineTuneSchedules, and verifies them: DSSE envelopes with keys on elliptic curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.signing_key import SUPPORTED_CURVES
from finetune_trainer.records.champion_alias import AliasEnvelope, ChampionAlias

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey


class SignatureInvalidError(Exception):
    """The alias is not signed, or not with this key, or was changed afterwards."""


def sign_alias(alias: ChampionAlias, key: EllipticCurvePrivateKey) -> ChampionAlias:
    """Return the alias with a signature of its other fields."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    payload_type = AliasEnvelope.model_fields["payload_type"].default
    envelope = Envelope(alias.to_payload(), payload_type, {})
    envelope.sign(CryptoSigner(key))
    return alias.model_copy(update={"signature": AliasEnvelope.model_validate(envelope.to_dict())})


def verify_alias(content: bytes, key: EllipticCurvePublicKey) -> ChampionAlias:
    """Return the signed fields of a stored alias.

    Raises `SignatureInvalidError` unless all its fields are signed with the key. `content` must be valid for
    `ChampionAlias`.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    envelope_record = ChampionAlias.model_validate_json(content).signature
    if envelope_record is None:
        raise SignatureInvalidError("it is not signed")
    try:
        envelope = Envelope.from_dict(envelope_record.to_json())
        envelope.verify([SSlibKey.from_crypto(key)], threshold=1)
    except (ValueError, VerificationError) as error:
        raise SignatureInvalidError("its signature was not made with this key") from error
    fields = {name: value for name, value in json.loads(content).items() if name != "signature"}
    if json.loads(envelope.payload) != fields:
        raise SignatureInvalidError("it was changed after it was signed")
    return ChampionAlias.model_validate_json(envelope.payload)


def load_public_key(path: Path) -> EllipticCurvePublicKey:
    """Read a public key in PEM. Raises `CONFIG_INVALID` unless it is on a supported curve."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    expected = "expected the PEM of a public key on the curve P-256, P-384 or P-521"
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise TrainerError(Reason.CONFIG_INVALID, f"{path}: {error.strerror}; {expected}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrainerError(Reason.CONFIG_INVALID, f"{path}: {expected}") from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in SUPPORTED_CURVES:
        raise TrainerError(Reason.CONFIG_INVALID, f"{path}: another kind of key; {expected}")
    return key
