"""Reports and logs the progress of a training, and stops it if its loss is not finite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydantic.alias_generators import to_camel

from finetune_trainer.contract import Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry.progress import ProgressReporter

log = logging.getLogger(__name__)

_LOG_INTERVAL_SECONDS = 10.0
_LOG_INTERVAL_PERCENT = 5
_REWARD_NAMES = {
    "reward": "reward",
    "flat_groups": "frac_reward_zero_std",
    "entropy": "entropy",
    "answer_tokens": "completions/mean_length",
}
"""TRL's names of what methods that generate answers log, by the field of `Progress`."""
_MAX_NON_FINITE_STEPS = 3
"""Consecutive steps without a finite loss after which the run fails."""


@dataclass(frozen=True)
class Step:
    """One optimizer step; `tokens` is the number of all tokens so far, without padding."""

    number: int
    total_steps: int
    epoch: float
    tokens: int
    logs: Mapping[str, float]

    @property
    def loss(self) -> float:
        """Mean loss per supervised token, or per row for preference methods."""
        return float(self.logs["loss"])

    @property
    def reward_fields(self) -> dict[str, float]:
        """The fields of `Progress` about the answers that the step generated, by name."""
        values = {field: self.logs.get(name) for field, name in _REWARD_NAMES.items()}
        return {field: float(value) for field, value in values.items() if value is not None and math.isfinite(value)}


@dataclass(frozen=True)
class StepOffset:
    """The position of a training among the trainings of its run."""

    name: str = ""
    """Name of the training in the log; empty if it is the only one."""
    steps_before: int = 0
    """Maximum number of optimizer steps of the previous trainings."""
    total_steps: int | None = None
    """Optimizer steps of all trainings; None if it is the only one."""
    fold_losses: tuple[float, ...] = ()
    """The losses of the previous folds."""

    def to_progress_fields(self, step: int, training_steps: int) -> dict[str, int]:
        """Return the progress of the run after `step` of the `training_steps` steps of this training."""
        steps_done, steps_in_run = self.steps_before + step, self.total_steps or training_steps
        return {
            "percentage": min(99, 100 * steps_done // max(steps_in_run, 1)),
            "step": steps_done,
            "total_steps": steps_in_run,
        }

    def remaining_steps(self, step: int, training_steps: int) -> int:
        """Return the remaining steps of the run."""
        return (self.total_steps or training_steps) - self.steps_before - step


MetricLogger = Callable[[int, Mapping[str, float]], None]
"""Receives the number of optimizer steps of the run, and metrics."""


def discard_metrics(_: int, __: Mapping[str, float]) -> None:
    """Ignore the metrics: there is no tracker."""


@dataclass
class TrainingMonitor:
    """Reports each step, and fails a run whose loss is not finite."""

    progress: ProgressReporter
    uses_loss_scaling: bool = False
    """Whether gradients are scaled (fp16). An infinite norm then only means that the scale was too high."""
    offset: StepOffset = StepOffset()
    log_metrics: MetricLogger = discard_metrics
    clock: Callable[[], float] = time.monotonic
    last_step: Step | None = None
    _started_at: float = field(init=False)
    _resumed_counts: tuple[int, int] = (0, 0)
    _last_logged: tuple[float, int] = (-math.inf, 0)
    _non_finite_steps: int = 0

    def begin(self, total_steps: int, resumed_steps: int = 0, resumed_tokens: int = 0) -> None:
        """Start the training, or resume it after the steps and tokens of an earlier attempt."""
        self._started_at, self._resumed_counts = self.clock(), (resumed_steps, resumed_tokens)
        self.progress.update(stage=Stage.TRAINING, **self.offset.to_progress_fields(resumed_steps, total_steps))

    def record_step(self, step: Step) -> None:
        """Report a step. Raises `NON_FINITE_LOSS` after the third consecutive step without a finite loss."""
        self.last_step = step
        seconds = max(self.clock() - self._started_at, 1e-9)
        pace = self._compute_pace(step, seconds)
        self.progress.update(
            **self.offset.to_progress_fields(step.number, step.total_steps),
            epoch=round(step.epoch, 3),
            loss=step.loss if math.isfinite(step.loss) else None,
            tokens_per_second=round(pace[0], 1),
            estimated_remaining_seconds=round(pace[1]),
            **step.reward_fields,
        )
        learning_rate = step.logs.get("learning_rate", math.nan)
        rewards = {to_camel(name): value for name, value in step.reward_fields.items()}
        step_metrics = {"loss": step.loss, "learningRate": learning_rate, "tokensPerSecond": pace[0], **rewards}
        self.log_metrics(self.offset.steps_before + step.number, step_metrics)
        self._log_step(step, seconds, pace)
        self._check_finite(step)

    def record_eval_loss(self, step_number: int, loss: float) -> None:
        """Report the validation loss after `step_number` steps."""
        self.progress.update(eval_loss=loss if math.isfinite(loss) else None)
        self.log_metrics(self.offset.steps_before + step_number, {"evalLoss": loss})
        log.info("validation loss %.4f after %d steps", loss, step_number)

    def check_held_out_loss(self, loss: float) -> float:
        """Return the loss on a held-out fold. Raises `NON_FINITE_LOSS` if it is not finite."""
        if math.isfinite(loss):
            return loss
        message = f"the loss on the held-out rows of {self.offset.name} is {loss}; lower training.learningRate"
        raise TrainerError(Reason.NON_FINITE_LOSS, message)

    def finish(self) -> Step:
        """Return the last step. Raises `NON_FINITE_LOSS` if its loss is not finite."""
        if self.last_step is None:
            raise TrainerError(Reason.INTERNAL_ERROR, "training ended without a step")
        if not math.isfinite(self.last_step.loss):
            raise self._build_non_finite_error(self.last_step)
        return self.last_step

    def _compute_pace(self, step: Step, seconds: float) -> tuple[float, float]:
        """Return tokens per second of this attempt, and the estimated remaining seconds of the run."""
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
            "%sstep %d/%d loss %.4f%s learning rate %.2e, %.0f tokens/s, %.0f s left",
            f"{self.offset.name}: " if self.offset.name else "",
            step.number,
            step.total_steps,
            step.loss,
            f" reward {step.reward_fields['reward']:.3f}" if "reward" in step.reward_fields else "",
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
            f"the loss or its gradient is not finite up to step {step.number} of {step.total_steps}{where}; "
            "lower training.learningRate or training.maxGradNorm, or set training.precision to bf16 or fp32",
        )
