"""Signs results with OpenSSF model signing. `model_signing verify key` then detects changes."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.contract import Signing
from finetune_trainer.publishing.signing_key import find_key_file, load_signing_key

SIGNATURE_NAME = "model.sig"


def check_signing_key(config: Signing) -> None:
    """Raise `AUTH_FAILED` unless there is a usable signing key."""
    load_signing_key(config)


def sign_folder(folder: Path, config: Signing) -> Path:
    """Sign all files in `folder`. Returns the signature, a new file in it. Raises `AUTH_FAILED` as
    `check_signing_key`."""
    from model_signing import hashing
    from model_signing import signing as openssf

    check_signing_key(config)
    signature = folder / SIGNATURE_NAME
    hashing_config = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    signer = openssf.Config().use_elliptic_key_signer(private_key=find_key_file(config))
    signer.set_hashing_config(hashing_config).sign(folder, signature)
    return signature
