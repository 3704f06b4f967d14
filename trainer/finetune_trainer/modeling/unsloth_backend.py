"""Loads models with Unsloth.

This module imports Unsloth, which patches transformers, TRL and PEFT for the whole process, so `import_backend` imports
it before them and only if Unsloth was chosen. Parts of Unsloth are AGPL-3.0: nothing here is copied from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unsloth import FastLanguageModel  # before transformers

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import quantization
from finetune_trainer.modeling.adapter_targets import resolve_target_modules
from finetune_trainer.modeling.batch_limits import limit_new_tokens
from finetune_trainer.modeling.library_errors import translate_model_errors
from finetune_trainer.modeling.lora import resolve_lora_alpha
from finetune_trainer.modeling.model_config import load_model_config
from finetune_trainer.modeling.positions import get_max_positions

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

_EVALUATION_TOKENS = 2048
"""Maximum tokens of the texts that evaluation adds to the data."""


def load_with_adapter(config: TrainerConfig, model_dir: Path, dtype: torch.dtype) -> PeftModel:
    """Load the base model with a new adapter, with the same settings as transformers. Raises as `load_model`."""
    base = load_base_model(config, model_dir, dtype)
    lora = config.training.lora
    return FastLanguageModel.get_peft_model(
        base,
        r=lora.rank,
        target_modules=resolve_target_modules(config, base),
        lora_alpha=resolve_lora_alpha(config),
        lora_dropout=lora.dropout,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        bias="none",
        use_gradient_checkpointing=_checkpointing_mode(config),
        random_state=config.training.seed,
        max_seq_length=_compute_max_length(config, model_dir),
    )


def load_base_model(config: TrainerConfig, model_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the base model. Raises as `load_model`."""
    with translate_model_errors():
        base, _ = FastLanguageModel.from_pretrained(
            model_name=str(model_dir),
            max_seq_length=_compute_max_length(config, model_dir),
            dtype=dtype,
            load_in_4bit=config.model.quantization == "nf4",  # its default is True
            load_in_8bit=config.model.quantization == "int8",
            full_finetuning=False,
            trust_remote_code=False,
            local_files_only=True,
            fix_tokenizer=False,  # the trainer uses the tokenizer of the model
            use_exact_model_name=True,  # otherwise names are mapped to uploads of Unsloth
            use_gradient_checkpointing=_checkpointing_mode(config),
            random_state=config.training.seed,
        )
    quantization.check_quantization(config, base, "unsloth")
    model: PreTrainedModel = base
    return model


def _checkpointing_mode(config: TrainerConfig) -> Literal["unsloth", False]:
    return "unsloth" if config.training.gradient_checkpointing else False


def _compute_max_length(config: TrainerConfig, model_dir: Path) -> int:
    """Return the maximum length of a text in tokens, including those of the evaluation: Unsloth truncates longer texts
    with only a warning. Beyond the positions of the model it would scale them, which no file of the adapter records, so
    that the published adapter would not match the trained one.

    `model.maxLength` is already limited to the positions of the model. Raises `CONFIG_INVALID` if these exceed what
    Unsloth supports without scaling, for example if RoPE scaling extends `max_position_embeddings`.
    """
    text_config = load_model_config(model_dir).get_text_config()
    if get_max_positions(text_config) is None:
        return max(config.model.max_length, _EVALUATION_TOKENS) + limit_new_tokens(config)
    positions: int = text_config.max_position_embeddings
    length = config.model.max_length
    if length > positions:
        message = (
            f"model.maxLength is {length}, but Unsloth supports at most {positions} tokens for this base model; lower "
            "it, or set training.backend to transformers"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
    return min(positions, max(length, _EVALUATION_TOKENS) + limit_new_tokens(config))
