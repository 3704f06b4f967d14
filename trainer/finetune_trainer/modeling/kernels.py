"""Replaces parts of a base model with the fused Triton kernels of Liger, and checks which settings need a GPU.

Liger is imported inside functions, by the runs that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.language_part import is_head_in_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIGER_FAMILIES = (
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "hunyuan_v1_dense",
    "llama",
    "ministral",
    "mistral",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
"""Values of `model_type` for which Liger has kernels of norms, rotary positions, feed-forward layers and the loss, that
were measured to equal the modules of transformers in loss and gradients. `make test-matrix` measures it."""


def check_gpu(config: TrainerConfig) -> None:
    """Raise `CONFIG_INVALID` for settings that need a GPU, if this machine has none. Imports torch if there are any."""
    training = config.training
    needs = {
        "training.kernels is liger": (training.kernels == "liger", "set it to standard"),
        "training.optimizer is pagedAdamw8bit": (training.optimizer == "pagedAdamw8bit", "set it to adamw"),
    }
    problems = [f"{setting}, which needs a GPU; {advice}" for setting, (applies, advice) in needs.items() if applies]
    if problems and not _has_gpu():
        raise TrainerError(Reason.CONFIG_INVALID, f"there is no GPU, but {', and '.join(problems)}")


def check_family(config: TrainerConfig, read_settings: Callable[[], Mapping[str, Any]]) -> None:
    """Raise `CONFIG_INVALID` if the kernels of the config do not support the base model.

    `read_settings` returns its config.json, or nothing if that is invalid: loading the model reports it.
    """
    if config.training.kernels != "liger":
        return
    family = read_settings().get("model_type")
    if family is not None and family not in LIGER_FAMILIES:
        message = (
            f"training.kernels is liger, which does not support the model family {family}, only "
            f"{', '.join(LIGER_FAMILIES)}; set training.kernels to standard"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)


def fuses_loss(config: TrainerConfig, base: PreTrainedModel) -> bool:
    """Return whether Liger computes the loss together with the output head.

    It reads the weights of the head, which are incomplete if tokens are trained, and `dpo` and `kto` need the logits.
    """
    training = config.training
    is_possible = training.method == "sft" and not training.lora.trainable_tokens and not is_head_in_decoder(base)
    return training.kernels == "liger" and is_possible


def list_liger_options(is_loss_fused: bool) -> dict[str, bool]:
    """Return the arguments of Liger. It ignores those that it does not know for a family."""
    return {
        "rope": True,
        "rms_norm": True,
        "swiglu": True,
        "geglu": True,
        "cross_entropy": False,
        "fused_linear_cross_entropy": is_loss_fused,
    }


def apply_liger_kernels(config: TrainerConfig, base: PreTrainedModel) -> None:
    """Replace the modules of a loaded base model that has no adapter yet. The function for rotary positions is replaced
    for all models of its family in this process."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(base, **list_liger_options(fuses_loss(config, base)))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
