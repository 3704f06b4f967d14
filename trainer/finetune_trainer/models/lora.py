"""The adapter's settings in PEFT's terms. Heavy imports happen inside functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from peft import LoraConfig

_WHOLE_MATRICES = ("lm_head", "embed_tokens")


def lora_config(config: TrainerConfig, modules: list[str]) -> LoraConfig:
    """The adapter for a model with these modules. Raises `CONFIG_INVALID` for a target that the model lacks."""
    from peft import LoraConfig

    lora = config.training.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora_alpha(config),
        lora_dropout=lora.dropout,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        target_modules=lora_targets(config, modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def lora_alpha(config: TrainerConfig) -> float:
    """Alpha, without a point if it is whole: some servers read it as an integer."""
    alpha = float(config.training.lora.alpha)
    return int(alpha) if alpha.is_integer() else alpha


def lora_targets(config: TrainerConfig, modules: list[str]) -> str | list[str]:
    """`all-linear` or module names, each of which is in `modules`. Raises `CONFIG_INVALID`."""
    targets = config.training.lora.target_modules
    if targets == ["all-linear"]:
        return "all-linear"
    names = {name.rsplit(".", 1)[-1] for name in modules if name}
    missing = [target for target in targets if target not in names and target not in modules]
    whole = [target for target in targets if target in _WHOLE_MATRICES]
    if missing or whole:
        why = f"the model has no {missing[0]}" if missing else f"{whole[0]} cannot have an adapter"
        known = ", ".join(sorted(name for name in names if name.endswith(("proj", "_attn", "dense", "fc1", "fc2"))))
        raise TrainerError(
            Reason.CONFIG_INVALID, f"training.lora.targetModules: {why}; use all-linear or some of {known}"
        )
    return list(targets)
