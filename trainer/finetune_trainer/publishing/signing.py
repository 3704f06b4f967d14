"""Signs results with OpenSSF model signing. `model_signing verify key` then detects changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import SIGNING_KEY, SIGNING_KEY_FILE_ENV, Reason, Signing
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from model_signing import signing as openssf

SIGNATURE_NAME = "model.sig"


def check_signing_key(config: Signing) -> None:
    """Raise `AUTH_FAILED` unless there is a usable signing key."""
    _load_signer(config)


def sign_folder(folder: Path, config: Signing) -> Path:
    """Sign all files in `folder`. Returns the signature, a new file in it."""
    from model_signing import hashing

    signature = folder / SIGNATURE_NAME
    hashing_config = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    _load_signer(config).set_hashing_config(hashing_config).sign(folder, signature)
    return signature


def _load_signer(config: Signing) -> openssf.Config:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from model_signing import signing as openssf

    path = _find_key_file(config)
    try:
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise _signing_error(config, "it contains a key of another kind")
        return openssf.Config().use_elliptic_key_signer(private_key=path)
    except OSError as error:
        raise _signing_error(config, f"{path} cannot be read: {error.strerror}") from error
    except TypeError as error:
        raise _signing_error(config, "it is encrypted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _signing_error(config, str(error)) from error


def _find_key_file(config: Signing) -> Path:
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
