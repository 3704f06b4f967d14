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

_LOG_SECONDS = 10.0
_LOG_PERCENT = 5
_NON_FINITE_STEPS = 3
"""Steps in a row without a finite loss after which the run ends."""


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


@dataclass(frozen=True)
class Position:
    """Where a training stands among those of its run."""

    name: str = ""
    """As the log calls it; empty if it is the only one."""
    before: int = 0
    """Optimizer steps of those before it, as many as they may take."""
    total: int | None = None
    """Optimizer steps of all; absent if it is the only one."""
    fold_losses: tuple[float, ...] = ()
    """What came of the folds before it."""

    def done(self, step: int, total: int) -> dict[str, int]:
        """What to report after that step of this training, which has so many, in terms of the whole run."""
        done, of = self.before + step, self.total or total
        return {"percentage": min(99, 100 * done // max(of, 1)), "step": done, "total_steps": of}

    def left(self, step: int, total: int) -> int:
        """Steps that are left of the whole run."""
        return (self.total or total) - self.before - step


Track = Callable[[int, Mapping[str, float]], None]
"""Takes metrics after so many optimizer steps of the run."""


def nowhere(_: int, __: Mapping[str, float]) -> None:
    """Nobody takes them."""


@dataclass
class Watch:
    """Reports each step, and ends a run whose loss is no number any more."""

    progress: ProgressReporter
    scaled: bool = False
    """Gradients are scaled (fp16), so that an infinite norm is no more than a scale that was too high."""
    position: Position = Position()
    track: Track = nowhere
    clock: Callable[[], float] = time.monotonic
    last: Step | None = None
    _started: float = field(init=False)
    _before: tuple[int, int] = (0, 0)
    _logged: tuple[float, int] = (-math.inf, 0)
    _non_finite: int = 0

    def begin(self, total: int, done: int = 0, tokens: int = 0) -> None:
        """Training starts now, or goes on after `done` steps and `tokens` tokens of an earlier attempt."""
        self._started, self._before = self.clock(), (done, tokens)
        self.progress.update(stage=Stage.TRAINING, **self.position.done(done, total))

    def step(self, step: Step) -> None:
        """A step is done. Raises `NON_FINITE_LOSS` after the third in a row without a finite loss."""
        self.last = step
        seconds = max(self.clock() - self._started, 1e-9)
        pace = self._pace(step, seconds)
        self.progress.update(
            **self.position.done(step.number, step.total),
            epoch=round(step.epoch, 3),
            loss=step.loss if math.isfinite(step.loss) else None,
            tokens_per_second=round(pace[0], 1),
            estimated_remaining_seconds=round(pace[1]),
        )
        rate = step.logs.get("learning_rate", math.nan)
        now = {"loss": step.loss, "learningRate": rate, "tokensPerSecond": pace[0]}
        self.track(self.position.before + step.number, now)
        self._log(step, seconds, pace)
        self._check_finite(step)

    def evaluated(self, number: int, loss: float) -> None:
        """The validation data's loss after that many steps."""
        self.progress.update(eval_loss=loss if math.isfinite(loss) else None)
        self.track(self.position.before + number, {"evalLoss": loss})
        log.info("validation loss %.4f after %d steps", loss, number)

    def left_out(self, loss: float) -> float:
        """That of the rows left out. Raises `NON_FINITE_LOSS` if it is no number."""
        if math.isfinite(loss):
            return loss
        message = f"the loss on the rows that {self.position.name} leaves out is {loss}; lower training.learningRate"
        raise TrainerError(Reason.NON_FINITE_LOSS, message)

    def end(self) -> Step:
        """The last step. Raises `NON_FINITE_LOSS` if its loss is no number."""
        if self.last is None:
            raise TrainerError(Reason.INTERNAL_ERROR, "training ended without a step")
        if not math.isfinite(self.last.loss):
            raise self._is_non_finite(self.last)
        return self.last

    def _pace(self, step: Step, seconds: float) -> tuple[float, float]:
        """Tokens per second and seconds that are left of the run, by what this attempt did."""
        done, tokens = self._before
        left = self.position.left(step.number, step.total)
        return (step.tokens - tokens) / seconds, seconds / max(step.number - done, 1) * left

    def _log(self, step: Step, seconds: float, pace: tuple[float, float]) -> None:
        (when, part), percentage = self._logged, 100 * step.number // max(step.total, 1)
        if seconds - when < _LOG_SECONDS and percentage - part < _LOG_PERCENT and step.number < step.total:
            return
        self._logged = (seconds, percentage)
        log.info(
            "%sstep %d/%d loss %.4f learning rate %.2e, %.0f tokens/s, %.0f s left",
            f"{self.position.name}: " if self.position.name else "",
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
            raise self._is_non_finite(step)

    def _is_non_finite(self, step: Step) -> TrainerError:
        where = f" in {self.position.name}" if self.position.name else ""
        return TrainerError(
            Reason.NON_FINITE_LOSS,
            f"the loss or its gradient is no finite number up to step {step.number} of {step.total}{where}; "
            "lower training.learningRate or training.maxGradNorm, or set training.precision to bf16 or fp32",
        )
