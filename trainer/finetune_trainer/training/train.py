"""Train the adapter and say how far it is. TRL itself is in `trl_trainers`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, Stage, TrainerConfig, Training
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.records import Energy
from finetune_trainer.faults import memory_errors
from finetune_trainer.models.model import Loaded, check_vocabulary
from finetune_trainer.models.precision import resolve_precision
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.training import looks
from finetune_trainer.training.looks import Look

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from finetune_trainer.data.preparing import PreparedData

log = logging.getLogger(__name__)

_LOG_SECONDS = 10.0
_LOG_PERCENT = 5
_NON_FINITE_STEPS = 3
"""Steps in a row without a finite loss after which the run ends."""


def total_steps(training: Training, rows: int, workers: int = 1) -> int:
    """Optimizer steps of a run over `rows` rows; the last of an epoch may be a smaller one."""
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(rows / (training.batch_size * workers))
    return math.ceil((training.epochs or 0) * max(math.ceil(batches / training.gradient_accumulation), 1))


@dataclass(frozen=True)
class Step:
    """One optimizer step as the trainer saw it; `tokens` are all so far, padding not counted."""

    number: int
    total: int
    epoch: float
    tokens: int
    logs: Mapping[str, float]

    @property
    def loss(self) -> float:
        """Mean loss per learnt token."""
        return float(self.logs["loss"])


@dataclass
class Watch:
    """Reports each step, and ends a run whose loss is no number any more."""

    progress: ProgressReporter
    scaled: bool = False
    """Gradients are scaled (fp16), so that an infinite norm is no more than a scale that was too high."""
    clock: Callable[[], float] = time.monotonic
    last: Step | None = None
    _started: float = field(init=False)
    _before: tuple[int, int] = (0, 0)
    _logged: tuple[float, int] = (-math.inf, 0)
    _non_finite: int = 0

    def begin(self, total: int, done: int = 0, tokens: int = 0) -> None:
        """Training starts now, or goes on after `done` steps and `tokens` tokens of an earlier attempt."""
        self._started, self._before = self.clock(), (done, tokens)
        self.progress.update(
            stage=Stage.TRAINING, percentage=min(99, 100 * done // max(total, 1)), step=done, total_steps=total
        )

    def step(self, step: Step) -> None:
        """A step is done. Raises `NON_FINITE_LOSS` after the third in a row without a finite loss."""
        self.last = step
        seconds = max(self.clock() - self._started, 1e-9)
        pace = self._pace(step, seconds)
        percentage = min(99, 100 * step.number // max(step.total, 1))
        self.progress.update(
            percentage=percentage,
            step=step.number,
            total_steps=step.total,
            epoch=round(step.epoch, 3),
            loss=step.loss if math.isfinite(step.loss) else None,
            tokens_per_second=round(pace[0], 1),
            estimated_remaining_seconds=round(pace[1]),
        )
        self._log(step, percentage, seconds, pace)
        self._check_finite(step)

    def evaluated(self, number: int, loss: float) -> None:
        """The validation data's loss after that many steps."""
        self.progress.update(eval_loss=loss if math.isfinite(loss) else None)
        log.info("validation loss %.4f after %d steps", loss, number)

    def end(self) -> Step:
        """The last step. Raises `NON_FINITE_LOSS` if its loss is no number."""
        if self.last is None:
            raise TrainerError(Reason.INTERNAL_ERROR, "training ended without a step")
        if not math.isfinite(self.last.loss):
            raise _non_finite(self.last)
        return self.last

    def _pace(self, step: Step, seconds: float) -> tuple[float, float]:
        """Tokens per second and seconds that are left, by what this attempt did."""
        done, tokens = self._before
        return (step.tokens - tokens) / seconds, seconds / max(step.number - done, 1) * (step.total - step.number)

    def _log(self, step: Step, percentage: int, seconds: float, pace: tuple[float, float]) -> None:
        when, part = self._logged
        if seconds - when < _LOG_SECONDS and percentage - part < _LOG_PERCENT and step.number < step.total:
            return
        self._logged = (seconds, percentage)
        log.info(
            "step %d/%d loss %.4f learning rate %.2e, %.0f tokens/s, %.0f s left",
            step.number,
            step.total,
            step.loss,
            step.logs.get("learning_rate", math.nan),
            *pace,
        )

    def _check_finite(self, step: Step) -> None:
        norm = 0.0 if self.scaled else float(step.logs.get("grad_norm", 0.0))
        self._non_finite = 0 if math.isfinite(step.loss) and math.isfinite(norm) else self._non_finite + 1
        if self._non_finite >= _NON_FINITE_STEPS:
            raise _non_finite(step)


def _non_finite(step: Step) -> TrainerError:
    return TrainerError(
        Reason.NON_FINITE_LOSS,
        f"the loss or its gradient is no finite number up to step {step.number} of {step.total}; "
        "lower training.learningRate or training.maxGradNorm, or set training.precision to bf16 or fp32",
    )


@dataclass(frozen=True)
class Session:
    """What accompanies a training: who hears of its progress, who else looks on, and where it goes on from.

    A callback may ask for a checkpoint (`control.should_save = True`): it lies at `<args.output_dir>/checkpoint-<step>`
    when `on_save` is called. `resume_from` is such a folder of an earlier attempt.
    """

    progress: ProgressReporter
    callbacks: Sequence[TrainerCallback] = ()
    resume_from: Path | None = None


@dataclass(frozen=True)
class Trained:
    """Numbers of the whole run, the loss of each step, each look at the validation data, and the GPUs' energy."""

    metrics: dict[str, float]
    losses: Sequence[tuple[int, float]] = ()
    looks: Sequence[Look] = ()
    energy: Energy = field(default_factory=Energy)


def train(config: TrainerConfig, loaded: Loaded, prepared: PreparedData, session: Session, work_dir: Path) -> Trained:
    """Train the adapter in place on prepared rows, every one of them in every epoch.

    The metrics are `trainLoss` (mean over all steps), `finalLoss` (of the last), `trainSeconds`, `steps`, `tokens`
    (trained, padding not counted, over all epochs), `supervisedTokens`, `tokensPerSecond` and, on a GPU,
    `energyWattHours` and `peakMemoryBytes` (of this attempt; all else is of the whole run); with validation data
    `baseEvalLoss` (before the first step), `evalLoss` (of the adapter that is taken), of `dpo` also
    `evalRewardAccuracy`, and `bestStep`, whose loss was lowest.
    Raises `NON_FINITE_LOSS`, `OUT_OF_MEMORY`, and `MODEL_INVALID` for a tokenizer that is not the model's.
    """
    from finetune_trainer.training import trl_trainers

    check_vocabulary(loaded)
    watch = Watch(session.progress, scaled=resolve_precision(config) == "fp16")
    with memory_errors(_advice(config)):
        result = trl_trainers.run(trl_trainers.Job(config, loaded, prepared, work_dir), session, watch)
    last = watch.end()
    metrics = {
        "trainLoss": math.fsum(loss for _, loss in result.losses) / max(len(result.losses), 1),
        "finalLoss": last.loss,
        "trainSeconds": round(result.seconds, 3),
        "steps": float(last.number),
        "tokens": float(result.tokens),
        "supervisedTokens": float(result.supervised),
        "tokensPerSecond": round(result.tokens / result.seconds, 1),
        **_seen(result.looks, config.training),
    }
    if result.peak_memory is not None:
        metrics["peakMemoryBytes"] = float(result.peak_memory)
    if result.energy.watt_hours is not None:
        metrics["energyWattHours"] = round(result.energy.watt_hours, 3)
    return Trained(metrics, result.losses, result.looks, result.energy)


def _seen(all_looks: Sequence[Look], training: Training) -> dict[str, float]:
    """What is said of the validation data."""
    if not all_looks:
        return {}
    first, best = all_looks[0], looks.best(all_looks)
    base = {"baseEvalLoss": first.loss} if first.step == 0 else {}
    lowest = {"bestStep": float(best.step)} if best else {}
    taken = best if best and training.early_stopping else all_looks[-1]
    return {name: value for name, value in {**base, **taken.metrics, **lowest}.items() if math.isfinite(value)}


def _advice(config: TrainerConfig) -> str:
    training = config.training
    recompute = "" if training.gradient_checkpointing else ", turn training.gradientCheckpointing on"
    return (
        f"train with batchSize {training.batch_size} and maxLength {config.model.max_length}; lower training.batchSize "
        f"(and raise gradientAccumulation as much) or model.maxLength{recompute}, or give it more memory"
    )
