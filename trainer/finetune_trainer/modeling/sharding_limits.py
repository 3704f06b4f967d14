"""The settings that a sharded base model does not support. Imports no torch."""

from __future__ import annotations

from finetune_trainer.contract import TrainerConfig


def list_unsupported_settings(config: TrainerConfig) -> list[str]:
    """Return the settings of a config that `compute.sharding full` does not support, as field and value."""
    training, lora = config.training, config.training.lora
    unsupported = {
        "training.backend unsloth": training.backend == "unsloth",
        f"training.method {training.method}": training.method not in ("sft", "dpo"),
        "training.kernels liger": training.kernels == "liger",
        f"model.quantization {config.model.quantization}": config.model.quantization != "none",
        "output.merged": config.output.merged,
        "training.lora.variant dora": lora.variant == "dora",
        "training.lora.targetParameters": bool(lora.target_parameters),
        "training.lora.trainableTokens": bool(lora.trainable_tokens),
    }
    return [name for name, is_set in unsupported.items() if is_set]
