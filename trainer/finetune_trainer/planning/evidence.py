"""What is published about hyperparameters of LoRA, and warnings about values outside of it."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_trainer.contract import TrainerConfig

_LEARNING_RATES = {
    "sft": (1e-4, 1e-3),
    "dpo": (1e-6, 1e-4),
    "kto": (1e-6, 1e-4),
    "grpo": (1e-6, 5e-5),
    "rloo": (1e-6, 5e-5),
}
"""Lowest and highest learning rate that were the best of some model, by method."""
_MAX_RANK = 256
_MAX_ROWS_PER_STEP = 32
_MIN_STEPS = 100
_LORA_SOURCE = "https://thinkingmachines.ai/blog/lora"
_LEARNING_RATE_SOURCES = {
    "sft": "https://github.com/thinking-machines-lab/tinker-cookbook, sft_sweep.md: 35 models",
    "dpo": "https://github.com/thinking-machines-lab/tinker-cookbook, hyperparams.md",
    "kto": "https://github.com/thinking-machines-lab/tinker-cookbook, hyperparams.md",
    "grpo": "https://huggingface.co/docs/trl/grpo_trainer, learning_rate",
    "rloo": "https://huggingface.co/docs/trl/rloo_trainer, learning_rate",
}


def list_warnings(config: TrainerConfig, rows_per_step: int, steps: int) -> Iterator[str]:
    """Yield a sentence with its source for each value that is outside of what has worked elsewhere."""
    training = config.training
    low, high = _LEARNING_RATES[training.method]
    if not low <= training.learning_rate <= high:
        yield (
            f"learningRate {training.learning_rate:g} is outside of {low:g} to {high:g}, where the best values for "
            f"{training.method} were found ({_LEARNING_RATE_SOURCES[training.method]})"
        )
    if training.lora.rank > _MAX_RANK:
        yield f"loraRank {training.lora.rank} is above {_MAX_RANK}, the highest rank that was needed ({_LORA_SOURCE})"
    if rows_per_step > _MAX_ROWS_PER_STEP:
        yield (
            f"{rows_per_step} rows per step are more than {_MAX_ROWS_PER_STEP}: LoRA loses more from large batches "
            f"than full fine-tuning ({_LORA_SOURCE})"
        )
    if steps < _MIN_STEPS:
        yield f"{steps} steps are few: the best learning rate is higher below {_MIN_STEPS} steps ({_LORA_SOURCE})"
