"""Evaluates the model during training on rows that it is not trained on. Imports TRL, so import it only after the
backend."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.contract import Training
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.modeling.batch_limits import limit_loss_tokens
from finetune_trainer.modeling.likelihood import RowLosses, compute_dataset_losses
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.modeling.sharding import keep_in_step
from finetune_trainer.training import early_stopping
from finetune_trainer.training.adapter_snapshot import AdapterSnapshot
from finetune_trainer.training.early_stopping import EvalResult
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.methods.base import TrainingMethod
from finetune_trainer.training.monitor import TrainingMonitor
from finetune_trainer.training.state import TrainerInputs
from finetune_trainer.training.step_stop import StepEvaluation
from finetune_trainer.training.tokenized_trainer import TokenizedTrainer, disable_gather

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutResult:
    """The result of one evaluation."""

    metrics: dict[str, float]
    """`evalLoss`, and the extra metrics of the method."""
    row_losses: RowLosses | None = None
    """The loss of each row. None for methods whose loss is not one of tokens: TRL returns only means of batches."""


@dataclass(frozen=True)
class HeldOutEvaluator:
    """Measures the training's own loss on rows that it is not trained on."""

    trainer: TokenizedTrainer
    inputs: TrainerInputs
    rows: datasets.Dataset
    heartbeat: Callable[[], None]
    """Called after each batch."""

    @property
    def method(self) -> TrainingMethod:
        """The training method."""
        return get_method(self.inputs.config)

    def evaluate(self) -> HeldOutResult:
        """Return `evalLoss`, the mean over supervised tokens, or over rows for preference methods, without dropout, and
        the extra metrics of the method."""
        model = self.trainer.model
        model.eval()
        # A data loader draws from the random generator of dropout; an evaluation must not change the training.
        with torch.random.fork_rng(devices=[]), disable_gather(self.trainer):
            result = self._evaluate_rows() if self.method.uses_token_loss else self._evaluate_batches()
        model.train()
        return result

    def evaluate_loss(self) -> float:
        """Return `evalLoss` alone."""
        return self.evaluate().metrics["evalLoss"]

    def _keep_in_step(self) -> AbstractContextManager[None]:
        """Return the context in which ranks with a sharded model may compute different numbers of batches. They must
        leave it before they exchange their results: one with fewer batches would wait for those of the others."""
        return keep_in_step(self.trainer.model, self.heartbeat)

    def _evaluate_rows(self) -> HeldOutResult:
        """Measure the loss of each row. The preflight check has compared this loss with TRL's."""
        local_rows = slice(topology.rank(), len(self.rows), topology.world_size())
        max_tokens = limit_loss_tokens(self.inputs.config, get_max_positions(self.trainer.model.config))
        with self._keep_in_step(), self.trainer.compute_loss_context_manager():
            local = compute_dataset_losses(
                self.trainer.model, self.rows.select(range(len(self.rows))[local_rows]), self.heartbeat, max_tokens
            )
        # The rows of other ranks are zero here, so the sum over the ranks is exact.
        table = torch.zeros((2, len(self.rows)), dtype=torch.float64)
        table[:, local_rows] = torch.tensor([local.sums, local.token_counts], dtype=torch.float64)
        sums, token_counts = collectives.all_reduce_sum(table).tolist()
        losses = RowLosses(sums, [*map(int, token_counts)])
        return HeldOutResult({"evalLoss": losses.mean if any(token_counts) else math.nan}, losses)

    def _evaluate_batches(self) -> HeldOutResult:
        """Measure the loss and the extra metrics of TRL's trainer."""
        names = ["evalLoss", *self.method.extra_metrics]
        with self._keep_in_step():
            batch_results = [self._evaluate_batch(batch) for batch in self._build_dataloader()]
        self.trainer._metrics["eval"].clear()
        totals = torch.tensor(batch_results, dtype=torch.float64).reshape(-1, 1 + len(names))
        total_weight, *sums = collectives.all_reduce_sum(totals.sum(0)).tolist()
        if not total_weight:
            return HeldOutResult({"evalLoss": math.nan})
        return HeldOutResult({name: total / total_weight for name, total in zip(names, sums, strict=True)})

    def _build_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """Return the batches of this rank."""
        local_batches = self._split_into_batches()[topology.rank() :: topology.world_size()]
        return torch.utils.data.DataLoader(
            self.rows, batch_sampler=local_batches, collate_fn=self.method.build_collator(self.inputs)
        )

    def _split_into_batches(self) -> list[list[int]]:
        """Return the row numbers of each batch, in their order. A method that compares rows gets pairs, and three rows
        at the end of an odd number, so that its loss does not depend on the batch size."""
        row_count, in_pairs = len(self.rows), self.method.compares_rows
        batch_size = 2 if in_pairs else self.trainer.args.per_device_train_batch_size
        starts = list(range(0, row_count, batch_size))
        if in_pairs and row_count % 2 and row_count > 1:
            del starts[-1]
        return [list(range(start, end)) for start, end in zip(starts, [*starts[1:], row_count], strict=True)]

    def _evaluate_batch(self, batch: dict[str, torch.Tensor]) -> list[float]:
        """Return the sequences of a batch, then its loss and its extra metrics, each times their number.

        `input_ids` has the shape (sequences, tokens). A row of `dpo` is two sequences.
        """
        weight = len(batch["input_ids"])
        batch = self.trainer._prepare_inputs(batch)
        with torch.no_grad(), self.trainer.compute_loss_context_manager():
            loss = float(self.trainer.compute_loss(self.trainer.model, batch))
        self.heartbeat()
        batch_metrics = self.trainer._metrics["eval"]
        extra_metrics = [batch_metrics[name][-1] for name in self.method.extra_metrics.values()]
        return [weight, *(value * weight for value in (loss, *extra_metrics))]


class EvalCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Evaluates before the first step, at the end of each epoch or every `evalSteps` steps, and after the last step.
    With `earlyStopping`, it also keeps the best adapter and stops the training.

    It runs at the end of a step, before the checkpoint of this step is saved, so that the checkpoint contains its
    result.
    """

    def __init__(self, evaluator: HeldOutEvaluator, monitor: TrainingMonitor, training: Training) -> None:
        self._evaluator, self._monitor, self._training = evaluator, monitor, training
        self._best_adapter = AdapterSnapshot(evaluator.trainer.model) if training.early_stopping else None

    @property
    def eval_results(self) -> list[EvalResult]:
        """All results so far, including those of earlier attempts."""
        return self._evaluator.trainer.token_counter.eval_results

    @property
    def should_stop(self) -> bool:
        """Whether early stopping ends the training now."""
        return early_stopping.should_stop(self.eval_results, self._training.early_stopping)

    def measure_step(self, step: int) -> StepEvaluation:
        """Return the evaluation of the current step, without adding it to the results. If the step was due for an
        evaluation, it is that one."""
        last_result = self.eval_results[-1] if self.eval_results else None
        if last_result and last_result.step == step:
            history = self._evaluator.trainer.token_counter.row_losses
            row_sums = history.sums_by_step.get(step, ())
            return StepEvaluation(step, last_result.loss, True, row_sums, history.token_counts if row_sums else ())
        held_out = self._evaluator.evaluate()
        rows = held_out.row_losses or RowLosses([], [])
        return StepEvaluation(step, held_out.metrics["evalLoss"], True, rows.sums, rows.token_counts)

    def restore(self, checkpoint: Path) -> None:
        """Restore the best adapter from a checkpoint. The token counter restores the results."""
        if self._best_adapter:
            self._best_adapter.load(checkpoint)

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        if state.global_step == 0:
            self._evaluate(state)

    def on_step_end(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        eval_steps, epoch = self._training.eval_steps, state.epoch or 0.0
        is_due = state.global_step % eval_steps == 0 if eval_steps else math.isclose(epoch, round(epoch), abs_tol=1e-6)
        if is_due or state.global_step >= state.max_steps:
            self._evaluate(state)
            control.should_training_stop |= self.should_stop

    def on_save(self, args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        if self._best_adapter:
            self._best_adapter.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        if not self.eval_results or self.eval_results[-1].step != state.global_step:
            self._evaluate(state)
        best_result = early_stopping.find_best(self.eval_results)
        if self._best_adapter and best_result:
            log.info("the adapter of step %d has the lowest validation loss and is restored", best_result.step)
            self._best_adapter.restore()

    def _evaluate(self, state: TrainerState) -> None:
        held_out = self._evaluator.evaluate()
        result, token_counter = EvalResult(state.global_step, held_out.metrics), self._evaluator.trainer.token_counter
        self.eval_results.append(result)
        if held_out.row_losses:
            token_counter.row_losses.record(result.step, held_out.row_losses.sums, held_out.row_losses.token_counts)
            token_counter.row_losses.keep(early_stopping.list_compared_steps(self.eval_results))
        self._monitor.record_eval_loss(result.step, result.loss)
        if self._best_adapter and early_stopping.find_best(self.eval_results) is result:
            self._best_adapter.capture()
