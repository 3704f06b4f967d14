"""The settings of a run as arguments of TRL's trainers. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.training.schedule import count_warmup_steps
from finetune_trainer.training.steps import count_optimizer_steps, resolve_accumulation

_SCHEDULERS = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant_with_warmup",
    "warmupStableDecay": "warmup_stable_decay",  # `TokenizedTrainer` uses the schedule of `training.schedule` instead
}
"""The name in transformers, by `training.scheduler`."""
_OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw8bit": "adamw_8bit", "pagedAdamw8bit": "paged_adamw_8bit"}
"""The name in transformers, by `training.optimizer`."""


def build_common_arguments(config: TrainerConfig, row_count: int, work_dir: Path) -> dict[str, Any]:
    """Return the arguments that are the same for all training methods."""
    training, precision, has_gpu = config.training, resolve_precision(config), torch.cuda.is_available()
    steps = count_optimizer_steps(training, row_count, topology.world_size())
    return {
        "output_dir": str(work_dir / "trainer"),
        "num_train_epochs": training.epochs or 1.0,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": training.batch_size,
        "gradient_accumulation_steps": resolve_accumulation(training, topology.world_size()),
        "gradient_checkpointing": training.gradient_checkpointing,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": _SCHEDULERS[training.scheduler],
        "warmup_steps": count_warmup_steps(training, steps),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        # TRL would add the load-balancing loss of a mixture of experts to each micro-batch, undivided: the loss would
        # depend on the gradient accumulation and not be a cross-entropy. It also crashes for GraniteMoeHybrid.
        "router_aux_loss_coef": 0.0,
        "optim": _OPTIMIZERS[training.optimizer],
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not has_gpu,
        "dataloader_pin_memory": has_gpu,
        "seed": training.seed,
        "data_seed": training.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the default hides NaN behind a plausible loss
        "save_strategy": "no",  # callbacks of the session request checkpoints
        "ddp_find_unused_parameters": False,  # the preflight checks that all trained parameters have a gradient
        "report_to": "none",
        "disable_tqdm": True,
    }
