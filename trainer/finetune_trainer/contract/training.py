"""The part of `TrainerConfig` that says how to train, in PEFT's and TRL's terms."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from finetune_trainer.contract.base import Model, ModuleName, cel_rules


class Lora(Model):
    """Low-rank adaptation, in PEFT's terms."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                "self.targetModules.size() == 1 || !('all-linear' in self.targetModules)",
                "targetModules is either ['all-linear'] or a list of module names",
            )
        )
    )

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank `r` of the update matrices."""
    alpha: float = Field(default=32, gt=0, le=65536)
    """Scaling: the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Dropout on the adapter's input, against overfitting."""
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """`rslora`: scales by alpha / sqrt(rank), steadier at high ranks. `dora`: trains magnitude and direction apart;
    better at low ranks, slower."""
    target_modules: list[ModuleName] = Field(default=["all-linear"], min_length=1, max_length=64)
    """Names of the modules that get an adapter, or `all-linear` for every linear layer but the output head."""


class Checkpoints(Model):
    """Saved states of a run, below `output.uri`, from which another attempt goes on. Deleted after success."""

    every_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimizer steps between two checkpoints. Absent means every two minutes. One more is saved when the pod is told
    to stop."""
    keep: int = Field(default=2, ge=1, le=10)
    """Newest checkpoints kept in the store."""


class EarlyStopping(Model):
    """Ends the training when the validation loss does not fall any more, and publishes the adapter of the lowest."""

    patience: int = Field(default=3, ge=1, le=1000)
    """Looks at the validation data without a lower loss after which training ends."""
    min_delta: float = Field(default=0, ge=0, le=1000)
    """How much lower than the lowest before it a loss must be to count."""


class CrossValidation(Model):
    """Trains once more for each fold, on all rows but its part, and measures the loss on that part."""

    folds: int = Field(ge=2, le=10)
    """Parts that the rows to train on are divided into, by `training.seed`. Rows that resemble each other stay in one.
    The result's metrics `crossValidationLoss` and `crossValidationDeviation` are mean and sample standard deviation of
    the folds' losses; `evaluation.gate` may ask for the first."""


class Training(Model):
    """How to train."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("has(self.epochs) != has(self.maxSteps)", "exactly one of epochs and maxSteps must be set"),
            ("!self.packing || self.method == 'sft'", "packing applies to method sft only"),
            (
                "!self.packing || self.backend != 'unsloth'",
                "packing needs backend transformers, or auto, which takes it",
            ),
            ("self.loss == 'completion' || self.method == 'sft'", "loss: all applies to method sft only"),
            (
                "self.method != 'kto' || self.batchSize > 1",
                "method kto needs a batchSize of at least 2: it compares each answer with others of its batch",
            ),
        )
    )

    method: Literal["sft", "dpo", "kto"] = "sft"
    """`sft`: supervised fine-tuning on answers. `dpo`: direct preference optimisation on pairs of a chosen and a
    rejected answer. `kto`: Kahneman-Tversky optimisation on answers that are each marked good or bad."""
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    """`unsloth`: Unsloth's kernels; not with packing, and int8 only on a GPU. `transformers`: plain transformers with
    PEFT. `auto`: Unsloth for `sft` without packing or int8 where there is a GPU and it is installed, else transformers.
    Both train the same tokens with TRL's trainers."""
    epochs: float | None = Field(default=None, gt=0, le=1000)
    """Passes over the data. Exactly one of `epochs` and `maxSteps`."""
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimizer steps. Exactly one of `epochs` and `maxSteps`."""
    batch_size: int = Field(default=2, ge=1, le=1024)
    """Examples per device and forward pass."""
    gradient_accumulation: int = Field(default=4, ge=1, le=1024)
    """Forward passes per optimizer step; the loss is averaged over all their tokens."""
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    """Peak learning rate."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Part of all steps in which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """AdamW's weight decay, against overfitting."""
    max_grad_norm: float = Field(default=1, gt=0, le=1000)
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the base model and its activations. `auto`: bf16 on a GPU that has it, fp16 on one that has
    not, fp32 on a CPU."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""
    packing: bool = False
    """Put several short examples into one sequence of up to `model.maxLength` tokens, kept apart by their positions:
    less padding, the same loss per token. For `sft`."""
    loss: Literal["completion", "all"] = "completion"
    """Which tokens are learnt: only the assistant's (the completion's), or all. Of `text` rows always all."""
    beta: float = Field(default=0.1, gt=0, le=10)
    """`dpo` and `kto`: how strongly the tuned model is held to the base model; higher stays closer."""
    eval_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimizer steps between two looks at the validation data. Absent means at the end of each epoch."""
    early_stopping: EarlyStopping | None = None
    """Ends the training when the validation loss does not fall any more, and publishes the adapter of the lowest. Needs
    `dataset.validation`. Absent trains to the end, and publishes the last."""
    cross_validation: CrossValidation | None = None
    """Trains once more for each fold, on all rows but its part, and measures the loss on that part: how well the
    training does on rows that it has not seen, and how much that depends on which it sees. The published adapter is
    that of a last training on all rows, the same as without. Costs `folds` + 1 trainings. Absent means none."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    """Seed of the adapter's start, the order of rows, dropout and the folds."""
    lora: Lora = Lora()
    """The adapter."""
    checkpoints: Checkpoints = Checkpoints()
    """Saved states from which another attempt goes on."""
    stall_seconds: int = Field(default=1800, ge=10, le=86400)
    """A training step, or a stage before and after training, that shows no progress for so long ends the attempt, with
    the stacks in the log; another follows."""
