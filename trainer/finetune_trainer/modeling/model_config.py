"""The config.json of a base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.modeling.library_errors import translate_model_errors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def load_model_config(model_dir: Path) -> PreTrainedConfig:
    """Read config.json. Raises `MODEL_INVALID` for an architecture that transformers does not know."""
    from transformers import AutoConfig

    with translate_model_errors():
        return AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False, local_files_only=True)
