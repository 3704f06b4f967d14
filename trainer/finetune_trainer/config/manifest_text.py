"""The text of a manifest: from a file, or in a pod that a user started, from the environment."""

from __future__ import annotations

import os
from pathlib import Path

from finetune_trainer.contract import MANIFEST_ENV, join_parts

ENVIRONMENT_MANIFEST = Path(f"${MANIFEST_ENV}")
"""Stands for the manifest in the environment."""


def find_environment_manifest() -> Path | None:
    """Return `ENVIRONMENT_MANIFEST` if the environment has a manifest."""
    return ENVIRONMENT_MANIFEST if os.environ.get(MANIFEST_ENV) else None


def read_manifest_text(path: Path) -> str:
    """Return the text of a manifest. Raises `OSError` and `UnicodeDecodeError`."""
    if path != ENVIRONMENT_MANIFEST:
        return path.read_text(encoding="utf-8")
    text = join_parts(os.environ, MANIFEST_ENV)
    if not text:
        raise OSError(0, "it is not set; name a manifest, such as job.yaml")
    return text
