"""The run's settings in TRL's terms. Imports TRL, so import this module only after the backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from trl import DPOConfig, KTOConfig, SFTConfig

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.training.train import count_optimizer_steps


def build_sft_config(config: TrainerConfig, backend: str, row_count: int, work_dir: Path) -> SFTConfig:
    """For supervised fine-tuning on `rows` rows."""
    return SFTConfig(
        **_build_common_arguments(config, row_count, work_dir),
        # The rows are ready: TRL would cut those that are longer than 1024 and drop some without a word.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,  # `packing.py` does it, and cuts nothing
        padding_free=False,
        remove_unused_columns=not config.training.packing,  # those name the rows of a sequence
        # Both compute the same loss without all logits at once; TRL's would bypass Unsloth's own. `preflight` compares
        # it with the model's logits and changes it if the two differ.
        loss_type="nll" if backend == "unsloth" else "chunked_nll",
    )


def build_dpo_config(config: TrainerConfig, row_count: int, work_dir: Path) -> DPOConfig:
    """For pairs of a chosen and a rejected answer."""
    return DPOConfig(**_build_common_arguments(config, row_count, work_dir), beta=config.training.beta, max_length=None)


def build_kto_config(config: TrainerConfig, row_count: int, work_dir: Path) -> KTOConfig:
    """For answers that are each marked good or bad."""
    return KTOConfig(
        **_build_common_arguments(config, row_count, work_dir),
        beta=config.training.beta,
        max_length=None,
        train_sampling_strategy="sequential",  # TRL insists; the rows are shuffled before
    )


def _build_common_arguments(config: TrainerConfig, row_count: int, work_dir: Path) -> dict[str, Any]:
    """What all methods have in common."""
    training, precision, has_gpu = config.training, resolve_precision(config), torch.cuda.is_available()
    steps = count_optimizer_steps(training, row_count, topology.world_size())
    return {
        "output_dir": str(work_dir / "trainer"),
        "num_train_epochs": training.epochs or 1.0,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "gradient_checkpointing": training.gradient_checkpointing,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if training.scheduler == "constant" else training.scheduler,
        # In steps, since a ratio is rounded up to all of a short run; the first of them trains at a rate of zero.
        "warmup_steps": min(round(steps * training.warmup_ratio), steps - 1),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        # TRL would add the load-balancing loss of a mixture of experts to each micro-batch, undivided: the loss would
        # depend on the gradient accumulation, and be no cross-entropy; and it crashes for GraniteMoeHybrid.
        "router_aux_loss_coef": 0.0,
        "optim": "adamw_torch_fused",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not has_gpu,
        "dataloader_pin_memory": has_gpu,
        "seed": training.seed,
        "data_seed": training.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # its default shows a plausible loss in place of NaN
        "save_strategy": "no",  # unless a callback of the session asks for it
        "ddp_find_unused_parameters": False,  # every trained weight has a gradient in every step
        "report_to": "none",
        "disable_tqdm": True,
    }
