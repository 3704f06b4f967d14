"""Names of checkpoints in S3. Imports no torch."""

from __future__ import annotations

import re

from finetune_trainer.telemetry.run_log import LOG_NAME

CHECKPOINTS_PREFIX = ".checkpoints/"
CHECKPOINT_MANIFEST_NAME = "checkpoint.json"
CHECKPOINT_FORMAT_VERSION = 1
COUNTS_NAME = "counts.json"
"""File with the tokens that were trained and the evaluations until the checkpoint."""
FOLD_LOSSES_KEY = "foldLosses"
"""Key in that file: losses of the folds of a cross-validation that were complete."""
BEST_ADAPTER_NAME = "best.safetensors"
"""The adapter with the lowest validation loss so far, if the run publishes that adapter."""
ALLOWED_FILES = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors|(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth"
    rf"|trainer_state\.json|{COUNTS_NAME}|{BEST_ADAPTER_NAME}|{LOG_NAME}"
)
"""Files of a checkpoint. transformers also writes the tokenizer and a pickle of its arguments, which are not stored."""
