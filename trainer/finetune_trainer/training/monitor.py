"""How far a training is, step by step: reported, logged, and ended where its loss is no number any more."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from finetune_trainer.contract import Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry.progress import ProgressReporter

log = logging.getLogger(__name__)

_LOG_INTERVAL_SECONDS = 10.0
_LOG_INTERVAL_PERCENT = 5
_MAX_NON_FINITE_STEPS = 3
"""Steps in a row without a finite loss after which the run ends."""


@dataclass(frozen=True)
class Step:
    """One optimizer step as the trainer saw it; `tokens` are all so far, padding not counted."""

    number: int
    total_steps: int
    epoch: float
    tokens: int
    logs: Mapping[str, float]

    @property
    def loss(self) -> float:
        """Mean loss per learnt token."""
        return float(self.logs["loss"])


@dataclass(frozen=True)
class StepOffset:
    """Where a training stands among those of its run."""

    name: str = ""
    """As the log calls it; empty if it is the only one."""
    steps_before: int = 0
    """Optimizer steps of those before it, as many as they may take."""
    total_steps: int | None = None
    """Optimizer steps of all; absent if it is the only one."""
    fold_losses: tuple[float, ...] = ()
    """What came of the folds before it."""

    def to_progress_fields(self, step: int, training_steps: int) -> dict[str, int]:
        """What to report after that step of this training, which has so many, in terms of the whole run."""
        steps_done, steps_in_run = self.steps_before + step, self.total_steps or training_steps
        return {
            "percentage": min(99, 100 * steps_done // max(steps_in_run, 1)),
            "step": steps_done,
            "total_steps": steps_in_run,
        }

    def remaining_steps(self, step: int, training_steps: int) -> int:
        """Steps that are left of the whole run."""
        return (self.total_steps or training_steps) - self.steps_before - step


MetricLogger = Callable[[int, Mapping[str, float]], None]
"""Takes metrics after so many optimizer steps of the run."""


def discard_metrics(_: int, __: Mapping[str, float]) -> None:
    """Nobody takes them."""


@dataclass
class TrainingMonitor:
    """Reports each step, and ends a run whose loss is no number any more."""

    progress: ProgressReporter
    uses_loss_scaling: bool = False
    """Gradients are scaled (fp16), so that an infinite norm is no more than a scale that was too high."""
    offset: StepOffset = StepOffset()
    log_metrics: MetricLogger = discard_metrics
    clock: Callable[[], float] = time.monotonic
    last_step: Step | None = None
    _started_at: float = field(init=False)
    _resumed_counts: tuple[int, int] = (0, 0)
    _last_logged: tuple[float, int] = (-math.inf, 0)
    _non_finite_steps: int = 0

    def begin(self, total_steps: int, resumed_steps: int = 0, resumed_tokens: int = 0) -> None:
        """Training starts now, or goes on after `done` steps and `tokens` tokens of an earlier attempt."""
        self._started_at, self._resumed_counts = self.clock(), (resumed_steps, resumed_tokens)
        self.progress.update(stage=Stage.TRAINING, **self.offset.to_progress_fields(resumed_steps, total_steps))

    def record_step(self, step: Step) -> None:
        """A step is done. Raises `NON_FINITE_LOSS` after the third in a row without a finite loss."""
        self.last_step = step
        seconds = max(self.clock() - self._started_at, 1e-9)
        pace = self._compute_pace(step, seconds)
        self.progress.update(
            **self.offset.to_progress_fields(step.number, step.total_steps),
            epoch=round(step.epoch, 3),
            loss=step.loss if math.isfinite(step.loss) else None,
            tokens_per_second=round(pace[0], 1),
            estimated_remaining_seconds=round(pace[1]),
        )
        learning_rate = step.logs.get("learning_rate", math.nan)
        step_metrics = {"loss": step.loss, "learningRate": learning_rate, "tokensPerSecond": pace[0]}
        self.log_metrics(self.offset.steps_before + step.number, step_metrics)
        self._log_step(step, seconds, pace)
        self._check_finite(step)

    def record_eval_loss(self, step_number: int, loss: float) -> None:
        """The validation data's loss after that many steps."""
        self.progress.update(eval_loss=loss if math.isfinite(loss) else None)
        self.log_metrics(self.offset.steps_before + step_number, {"evalLoss": loss})
        log.info("validation loss %.4f after %d steps", loss, step_number)

    def check_held_out_loss(self, loss: float) -> float:
        """That of the rows left out. Raises `NON_FINITE_LOSS` if it is no number."""
        if math.isfinite(loss):
            return loss
        message = f"the loss on the rows that {self.offset.name} leaves out is {loss}; lower training.learningRate"
        raise TrainerError(Reason.NON_FINITE_LOSS, message)

    def finish(self) -> Step:
        """The last step. Raises `NON_FINITE_LOSS` if its loss is no number."""
        if self.last_step is None:
            raise TrainerError(Reason.INTERNAL_ERROR, "training ended without a step")
        if not math.isfinite(self.last_step.loss):
            raise self._build_non_finite_error(self.last_step)
        return self.last_step

    def _compute_pace(self, step: Step, seconds: float) -> tuple[float, float]:
        """Tokens per second and seconds that are left of the run, by what this attempt did."""
        resumed_steps, resumed_tokens = self._resumed_counts
        remaining_steps = self.offset.remaining_steps(step.number, step.total_steps)
        return (step.tokens - resumed_tokens) / seconds, seconds / max(step.number - resumed_steps, 1) * remaining_steps

    def _log_step(self, step: Step, seconds: float, pace: tuple[float, float]) -> None:
        (logged_seconds, logged_percentage), percentage = (
            self._last_logged,
            100 * step.number // max(step.total_steps, 1),
        )
        if (
            seconds - logged_seconds < _LOG_INTERVAL_SECONDS
            and percentage - logged_percentage < _LOG_INTERVAL_PERCENT
            and step.number < step.total_steps
        ):
            return
        self._last_logged = (seconds, percentage)
        log.info(
            "%sstep %d/%d loss %.4f learning rate %.2e, %.0f tokens/s, %.0f s left",
            f"{self.offset.name}: " if self.offset.name else "",
            step.number,
            step.total_steps,
            step.loss,
            step.logs.get("learning_rate", math.nan),
            *pace,
        )

    def _check_finite(self, step: Step) -> None:
        grad_norm = 0.0 if self.uses_loss_scaling else float(step.logs.get("grad_norm", 0.0))
        self._non_finite_steps = (
            0 if math.isfinite(step.loss) and math.isfinite(grad_norm) else self._non_finite_steps + 1
        )
        if self._non_finite_steps >= _MAX_NON_FINITE_STEPS:
            raise self._build_non_finite_error(step)

    def _build_non_finite_error(self, step: Step) -> TrainerError:
        where = f" in {self.offset.name}" if self.offset.name else ""
        return TrainerError(
            Reason.NON_FINITE_LOSS,
            f"the loss or its gradient is no finite number up to step {step.number} of {step.total_steps}{where}; "
            "lower training.learningRate or training.maxGradNorm, or set training.precision to bf16 or fp32",
        )
