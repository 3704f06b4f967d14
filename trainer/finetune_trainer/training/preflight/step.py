"""Checks the gradients of an optimizer step before the first one. Imports torch, so import this module only after the
backend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from finetune_trainer.contract import Reason, Training
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.methods.sft_trainer import TokenizedSFTTrainer
from finetune_trainer.training.preflight.architecture import check_gradient_checkpointing
from finetune_trainer.training.preflight.sample import Sample, select_tolerance
from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

_LOSS_TOLERANCES = {"fp32": 1e-3, "bf16": 5e-3, "fp16": 5e-3, "int8": 5e-3}
"""Difference of two losses of a step, relative to the loss, or absolute if the loss is below 1. A mean of the means of
micro-batches differs by 3e-3 or more."""
_MAX_LOSS_DIFFERENCE = 0.05
"""A larger difference ends the run."""
_GRADIENT_TOLERANCES = {"fp32": 1e-2, "bf16": 0.2, "fp16": 0.2, "int8": 1.0}
"""Norm of the difference of two gradients, relative to the norm of the gradient. Padding changes how they are rounded,
the more so if the loss is already low; `int8` rounds a row depending on its batch."""
_MAX_GRADIENT_DIFFERENCES = {"fp32": 0.1, "bf16": 1.0, "fp16": 1.0, "int8": math.inf}
"""A larger difference ends the run."""
_MAX_NAMES = 3
"""Names of parameters in a message."""


@dataclass(frozen=True)
class StepResult:
    """The loss of an optimizer step, and its gradients by parameter."""

    loss: float
    gradients: Mapping[str, torch.Tensor | None]

    @property
    def norm(self) -> float:
        """The norm of all gradients together."""
        return math.sqrt(math.fsum(float(each.norm()) ** 2 for each in self.gradients.values() if each is not None))

    def measure_distance(self, other: StepResult) -> float:
        """Return the norm of the difference to other gradients of the same parameters, relative to the own norm."""
        differences = [
            float((gradient - other_gradient).norm())
            for gradient, other_gradient in zip(self.gradients.values(), other.gradients.values(), strict=True)
            if gradient is not None and other_gradient is not None
        ]
        return math.hypot(*differences) / max(self.norm, 1e-12)


@dataclass(frozen=True)
class StepCheck:
    """Checks the gradients of a step, in evaluation mode. All ranks must run it."""

    sample: Sample
    expected_loss: float
    """The loss of the rows, each as a batch of its own, without a step."""

    def run(self) -> list[PreflightFinding]:
        """Compute the gradients of a batch, and those of its rows in batches of their own. Nothing of them remains.

        Raises `CONFIG_INVALID` if a trained parameter has no gradient or the model does not support gradient
        checkpointing, and `MODEL_UNSUPPORTED` if a gradient is not finite or the step depends on its batches.
        """
        with gradient_mode(self.sample.trainer):
            result = self._compute_step([self.sample.rows])
            return [self._check_gradients(result), *self._check_accumulation(result)]

    def _compute_step(self, row_groups: Sequence[Sequence[Mapping[str, Any]]]) -> StepResult:
        """Return loss and gradients of a step whose batches are the groups of rows, as the trainer normalizes it."""
        trainer, losses = self.sample.trainer, []
        batches = iter([self.sample.collate(rows) for rows in row_groups])
        batches, item_count = trainer.get_batch_samples(batches, len(row_groups), trainer.args.device)
        # transformers multiplies a loss that is divided by the tokens of all ranks: the ranks' mean is a sum then.
        divisor = len(row_groups) if item_count is None else trainer.accelerator.num_processes
        for batch in batches:
            with self.sample.translate_errors("loss of a step"):
                loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=item_count) / divisor
            with self.sample.translate_errors("backward pass"):
                loss.backward()
            losses.append(float(loss.detach()))
            self.sample.heartbeat()
        return StepResult(math.fsum(losses), dict(_take_gradients(trainer.model)))

    def _check_gradients(self, result: StepResult) -> PreflightFinding:
        unused = [name for name, gradient in result.gradients.items() if gradient is None]
        invalid = [
            name
            for name, gradient in result.gradients.items()
            if gradient is not None and not torch.isfinite(gradient).all()
        ]
        has_unused, has_invalid = collectives.all_reduce_any(bool(unused), bool(invalid))
        if has_unused:
            raise TrainerError(Reason.CONFIG_INVALID, self._describe_unused(unused, len(result.gradients)))
        if has_invalid:
            raise TrainerError(
                Reason.MODEL_UNSUPPORTED,
                f"{len(invalid)} of {len(result.gradients)} trained parameters of {self.sample.model_class} have a "
                f"gradient that is not finite, with a loss of {result.loss:.6g}: {_join_names(invalid)}; use another "
                "training.precision or training.backend",
            )
        if not collectives.all_reduce_any(result.norm > 0)[0]:
            raise TrainerError(Reason.MODEL_UNSUPPORTED, self._describe_zero(result))
        message = f"all {len(result.gradients)} trained parameters have a finite gradient; its norm is "
        return PreflightFinding(
            check="gradients", status="passed", message=f"{message}{result.norm:.6g}", value=result.norm
        )

    def _describe_zero(self, result: StepResult) -> str:
        return (
            f"the gradients of all {len(result.gradients)} trained parameters of {self.sample.model_class} are 0 with "
            f"a loss of {result.loss:.6g}, so nothing would be learned; check that the weights of the base model are "
            "complete and not all zero, or use another base model"
        )

    def _describe_unused(self, names: Sequence[str], parameter_count: int) -> str:
        return (
            f"training.lora: {len(names)} of {parameter_count} trained parameters of {self.sample.model_class} have no "
            f"gradient, because the loss does not depend on them: {_join_names(names)}; set "
            "training.lora.targetModules to modules that process the text"
        )

    def _check_accumulation(self, whole: StepResult) -> list[PreflightFinding]:
        """Compare one batch with batches of one row. The loss of `kto` depends on the other rows of a batch."""
        if not self.sample.splits_steps or len(self.sample.rows) == 1 or self.sample.config.training.method == "kto":
            return []
        row_groups = [[row] for row in self.sample.rows]
        parts = self._compute_step(row_groups)
        if self._differ(whole, parts)[0] and isinstance(self.sample.trainer, TokenizedSFTTrainer):
            self.sample.trainer.normalize_mean_loss()
            whole, parts = self._compute_step([self.sample.rows]), self._compute_step(row_groups)
        is_different, is_unsupported = self._differ(whole, parts)
        message = (
            f"the loss of a step is {parts.loss:.6g} with {len(row_groups)} batches of one row, that of the rows "
            f"{self.expected_loss:.6g}; the gradient differs by {whole.measure_distance(parts):.2%} from that of one "
            "batch"
        )
        if is_unsupported:
            raise TrainerError(
                Reason.MODEL_UNSUPPORTED,
                f"{message}: the result would depend on {_advise_single_batch(self.sample.config.training)} and train "
                f"on a single GPU, or use another base model than {self.sample.model_class}",
            )
        status: Literal["passed", "warning"] = "warning" if is_different else "passed"
        finding = PreflightFinding(
            check="accumulation", status=status, message=message, value=parts.loss, expected=self.expected_loss
        )
        return [finding]

    def _differ(self, whole: StepResult, parts: StepResult) -> tuple[bool, bool]:
        """Return whether a step depends on its batches at all, and whether it does so too much, in any rank."""
        config = self.sample.config
        loss_difference = abs(parts.loss - self.expected_loss) / max(abs(self.expected_loss), 1.0)
        distance = whole.measure_distance(parts)
        is_different = not (
            loss_difference <= select_tolerance(config, _LOSS_TOLERANCES)
            and distance <= select_tolerance(config, _GRADIENT_TOLERANCES)
        )
        is_large = not (
            loss_difference <= _MAX_LOSS_DIFFERENCE and distance <= select_tolerance(config, _MAX_GRADIENT_DIFFERENCES)
        )
        any_different, any_large = collectives.all_reduce_any(is_different, is_large)
        return any_different, any_large


@contextmanager
def gradient_mode(trainer: TokenizedTrainer) -> Iterator[None]:
    """Enable gradients in evaluation mode, with the gradient checkpointing of the training. Drop them afterwards."""
    check_gradient_checkpointing(trainer)
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    # A layer checkpoints in training mode only. Its submodules stay in evaluation mode, without dropout.
    layers = [module for module in trainer.model.modules() if _can_checkpoint(module)]
    try:
        for layer in layers:
            layer.training = True
        with torch.enable_grad():
            yield
    finally:
        for layer in layers:
            layer.training = False
        for parameter in trainer.model.parameters():
            parameter.grad = None


def _can_checkpoint(module: torch.nn.Module) -> bool:
    """Return whether a module checkpoints, and has no dropout of its own, such as the layers of OPT."""
    values = vars(module)
    has_dropout = any("drop" in name and isinstance(value, float) and value > 0 for name, value in values.items())
    return bool(values.get("gradient_checkpointing")) and not has_dropout


def _take_gradients(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Yield the gradients of all trained parameters by name, and remove them from the model."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter.grad
            parameter.grad = None


def _join_names(names: Sequence[str]) -> str:
    """Return the names of a few parameters, as in the files of the base model."""
    shown = [name.removeprefix("base_model.model.").replace(".default.", ".") for name in names[:_MAX_NAMES]]
    return ", ".join(shown) + (", …" if len(names) > _MAX_NAMES else "")


def _advise_single_batch(training: Training) -> str:
    """Return the setting that splits a step into batches, and its value for a single batch."""
    if training.global_batch_size:
        return f"training.globalBatchSize; set it to {training.batch_size}"
    return "training.gradientAccumulation; set it to 1"
