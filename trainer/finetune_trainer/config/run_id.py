"""The identity of a run, which all its attempts share."""

from __future__ import annotations

import os
import uuid

from finetune_trainer.contract import RUN_ID_ENV


def get_run_id() -> str:
    """Return the run ID that the operator set, or a new one for a run that was started by hand."""
    return os.environ.get(RUN_ID_ENV) or f"by-hand-{uuid.uuid4()}"
