"""Sign what is published, so that OpenSSF's `model_signing verify key` can tell whether somebody changed it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import SIGNING_KEY, SIGNING_KEY_FILE_ENV, Reason, Signing
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from model_signing import signing as openssf

SIGNATURE_NAME = "model.sig"


def check_key(asked: Signing) -> None:
    """Whether there is a key to sign with. Raises `AUTH_FAILED`."""
    _signer(asked)


def sign(folder: Path, asked: Signing) -> Path:
    """Sign all files in `folder`; the signature is one more of them."""
    from model_signing import hashing

    signature = folder / SIGNATURE_NAME
    files = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    _signer(asked).set_hashing_config(files).sign(folder, signature)
    return signature


def _signer(asked: Signing) -> openssf.Config:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from model_signing import signing as openssf

    path = _key_file(asked)
    try:
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise _refused(asked, "it holds a key of another kind")
        return openssf.Config().use_elliptic_key_signer(private_key=path)
    except OSError as error:
        raise _refused(asked, f"{path} cannot be read: {error.strerror}") from error
    except TypeError as error:
        raise _refused(asked, "it is encrypted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _refused(asked, str(error)) from error


def _key_file(asked: Signing) -> Path:
    path = os.environ.get(SIGNING_KEY_FILE_ENV)
    if not path:
        raise _refused(asked, f"{SIGNING_KEY_FILE_ENV} names no file that holds it")
    return Path(path)


def _refused(asked: Signing, why: str) -> TrainerError:
    """Never with anything of the key itself."""
    return TrainerError(
        Reason.AUTH_FAILED,
        f"output.signing: key {SIGNING_KEY} of Secret {asked.key_secret_ref.name} cannot sign: {why}; it has to be the "
        "PEM of an unencrypted private key on the curve P-256, P-384 or P-521",
    )
