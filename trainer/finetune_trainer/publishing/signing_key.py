"""The private key of `output.signing`, which signs results and aliases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import SIGNING_KEY, SIGNING_KEY_FILE_ENV, Reason, Signing
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SUPPORTED_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def load_signing_key(config: Signing) -> EllipticCurvePrivateKey:
    """Return the key of the mounted Secret. Raises `AUTH_FAILED` unless it can sign."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = find_key_file(config)
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise _signing_error(config, f"{path} cannot be read: {error.strerror}") from error
    except TypeError as error:
        raise _signing_error(config, "it is encrypted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _signing_error(config, str(error)) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise _signing_error(config, "it contains a key of another kind")
    if key.curve.name not in SUPPORTED_CURVES:
        raise _signing_error(config, f"Unsupported key for curve '{key.curve.name}'")
    return key


def find_key_file(config: Signing) -> Path:
    """Return the path of the key. Raises `AUTH_FAILED` if the environment names none."""
    path = os.environ.get(SIGNING_KEY_FILE_ENV)
    if not path:
        raise _signing_error(config, f"{SIGNING_KEY_FILE_ENV} is not set")
    return Path(path)


def _signing_error(config: Signing, cause: str) -> TrainerError:
    """Build the error for an unusable key. It never contains anything of the key."""
    return TrainerError(
        Reason.AUTH_FAILED,
        f"output.signing: key {SIGNING_KEY} of Secret {config.key_secret_ref.name} cannot sign: {cause}; it must "
        "be the PEM of an unencrypted private key on the curve P-256, P-384 or P-521",
    )
