"""Who we are to a tracker's server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from finetune_trainer.contract import TRACKING_CREDENTIALS_DIR_ENV, TRACKING_KEYS, Reason, Tracking
from finetune_trainer.errors import TrainerError


def read(asked: Tracking) -> Mapping[str, str]:
    """From the mounted Secret, by the names of the library's own variables; nothing where none is asked for.

    Raises `AUTH_FAILED` if it holds nothing that can be used: the server would only say so when the run is under way.
    """
    folder = os.environ.get(TRACKING_CREDENTIALS_DIR_ENV)
    if not folder:
        return {}
    found = {name: value for name in TRACKING_KEYS[asked.tool] if (value := _key(Path(folder), name))}
    first, *others = TRACKING_KEYS[asked.tool]
    if first not in found and not (others and all(name in found for name in others)):
        wanted = " and no ".join([first, " and ".join(others)] if others else [first])
        message = f"the Secret of tracking.credentialsSecretRef is not there, or has no {wanted} (mounted at {folder})"
        raise TrainerError(Reason.AUTH_FAILED, message)
    return found


def _key(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text().strip()
    except FileNotFoundError:
        return ""
