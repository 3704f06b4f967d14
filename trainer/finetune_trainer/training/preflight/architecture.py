"""Checks before the first step that the model can run at all with the settings. Imports torch, so import this module
only after the backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.library_errors import is_memory_error

if TYPE_CHECKING:
    from finetune_trainer.training.preflight.sample import Sample
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer


def check_forward_pass(sample: Sample) -> None:
    """Raise `MODEL_UNSUPPORTED` if the model with its adapter fails on a row for another reason than the machine."""
    row, model = sample.rows[-1], sample.trainer.model
    input_ids = row["input_ids"] if "input_ids" in row else row["prompt_ids"]
    try:
        for is_training in (True, False):  # some models compute something else when they are trained
            model.train(is_training)
            model(input_ids=torch.tensor([input_ids], device=model.device), use_cache=False)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if _is_machine_error(error):
            raise
        problem = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        message = (
            f"the forward pass of {sample.model_class} with its adapter fails on a row of {len(input_ids)} tokens "
            f"({problem}); set other training.lora.targetModules, or use another training.backend or base model"
        )
        raise TrainerError(Reason.MODEL_UNSUPPORTED, message) from error


def _is_machine_error(error: Exception) -> bool:
    """Return whether an error is due to memory, the GPU or other ranks. Errors of operators, such as shapes that do not
    match, have the same type."""
    text = str(error)
    if not isinstance(error, RuntimeError) or isinstance(error, NotImplementedError):
        return False
    is_subclass = type(error) is not RuntimeError  # torch's errors of memory, devices and ranks
    return is_subclass or is_memory_error(error) or any(name in text for name in ("CUDA", "cuDNN", "NCCL", "HIP"))


def check_gradient_checkpointing(trainer: TokenizedTrainer) -> None:
    """Raise `CONFIG_INVALID` if gradient checkpointing is configured, but the model does not support it."""
    model = trainer.model.get_base_model()
    if trainer.args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        message = (
            f"training.gradientCheckpointing: {type(model).__name__} does not support gradient checkpointing; set "
            "training.gradientCheckpointing to false, and lower training.batchSize if the memory is exceeded"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
