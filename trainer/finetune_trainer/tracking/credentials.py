"""Who we are to a tracker's server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from finetune_trainer.contract import TRACKING_CREDENTIALS_DIR_ENV, TRACKING_KEYS, Reason, Tracking
from finetune_trainer.errors import TrainerError


def read_credentials(tracking_config: Tracking) -> Mapping[str, str]:
    """From the mounted Secret, by the names of the library's own variables; nothing where none is asked for.

    Raises `AUTH_FAILED` if it holds nothing that can be used: the server would only say so when the run is under way.
    """
    folder = os.environ.get(TRACKING_CREDENTIALS_DIR_ENV)
    if not folder:
        return {}
    secrets = {name: value for name in TRACKING_KEYS[tracking_config.tool] if (value := _read_key(Path(folder), name))}
    required_key, *alternative_keys = TRACKING_KEYS[tracking_config.tool]
    if required_key not in secrets and not (alternative_keys and all(name in secrets for name in alternative_keys)):
        missing_keys = " and no ".join(
            [required_key, " and ".join(alternative_keys)] if alternative_keys else [required_key]
        )
        message = (
            f"the Secret of tracking.credentialsSecretRef is not there, or has no {missing_keys} (mounted at {folder})"
        )
        raise TrainerError(Reason.AUTH_FAILED, message)
    return secrets


def _read_key(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text().strip()
    except FileNotFoundError:
        return ""
