"""Creates the LoRA adapter with PEFT. Heavy imports happen inside functions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling.adapter_targets import (
    invalid_targets,
    resolve_target_modules,
    resolve_target_parameters,
)
from finetune_trainer.modeling.trainable_tokens import resolve_token_indices

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


def add_adapter(config: TrainerConfig, base: PreTrainedModel, model_dir: Path) -> PeftModel:
    """Return the base model with a new adapter. `model_dir` has the tokenizer.

    Raises `CONFIG_INVALID` for modules, parameters or tokens that cannot be trained.
    """
    from peft import get_peft_model

    lora = build_lora_config(config, base, model_dir)
    with _translate_target_errors(), warnings.catch_warnings():
        # PEFT warns that it corrects this setting for the layers of GPT-2, whose weights are transposed.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        return get_peft_model(base, lora)


def build_lora_config(config: TrainerConfig, base: PreTrainedModel, model_dir: Path) -> LoraConfig:
    """Return the adapter config for a base model. Raises as `add_adapter`."""
    from peft import LoraConfig

    lora = config.training.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=resolve_lora_alpha(config),
        lora_dropout=lora.dropout,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        target_modules=resolve_target_modules(config, base),
        target_parameters=resolve_target_parameters(config, base),
        trainable_token_indices=resolve_token_indices(config, base, model_dir),
        bias="none",
        task_type="CAUSAL_LM",
    )


def list_adapter_sizes(config: TrainerConfig, meta_model: PreTrainedModel, model_dir: Path) -> list[int]:
    """Return the number of parameters of each trainable tensor of a model on the `meta` device, which gets an adapter.
    Raises as `add_adapter`."""
    import torch

    with torch.device("meta"):
        adapted = add_adapter(config, meta_model, model_dir)
    return [parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad]


def resolve_lora_alpha(config: TrainerConfig) -> float:
    """Return alpha, as an integer if it is one: some servers parse it as an integer."""
    alpha = float(config.training.lora.alpha)
    return int(alpha) if alpha.is_integer() else alpha


@contextmanager
def _translate_target_errors() -> Iterator[None]:
    """Translate errors of PEFT, which has rules of its own on modules and their combinations."""
    try:
        yield
    except ValueError as error:
        raise invalid_targets(f"these modules cannot have an adapter: {error}") from error
