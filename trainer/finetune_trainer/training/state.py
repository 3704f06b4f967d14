"""The inputs and the result of a training, as plain data without heavy imports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.records.evaluation import EnergyUse, PreflightFinding, RewardPoint
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.training.early_stopping import EvalResult
from finetune_trainer.training.monitor import MetricLogger, StepOffset, discard_metrics
from finetune_trainer.training.row_losses import RowLossHistory

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from finetune_trainer.checkpoints.manager import CheckpointSaver
    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.modeling.loading import LoadedModel


def discard_findings(findings: Sequence[PreflightFinding]) -> None:
    """Do nothing with the results of the checks before the first step."""


@dataclass(frozen=True)
class TrainingSession:
    """The environment of a training: progress reports, callbacks, the checkpoint to resume from, and its place among
    the trainings of the run.

    A callback may request a checkpoint with `control.should_save = True`. It is written to
    `<args.output_dir>/checkpoint-<step>` before `on_save` is called.
    """

    progress: ProgressReporter
    callbacks: Sequence[TrainerCallback] = ()
    resume_from: Path | None = None
    """The folder of a checkpoint of an earlier attempt."""
    saver: CheckpointSaver | None = None
    """Decides about the checkpoints that another attempt can resume from."""
    stop_step: int | None = None
    """The optimizer step at which the training is evaluated, saved and stopped, or None to train to the end."""
    offset: StepOffset = field(default_factory=StepOffset)
    log_metrics: MetricLogger = discard_metrics
    record_preflight: Callable[[Sequence[PreflightFinding]], None] = discard_findings
    """Is called with the results of the checks before the first step."""


@dataclass(frozen=True)
class TrainerInputs:
    """The config, model and rows that a trainer is built from."""

    config: TrainerConfig
    loaded: LoadedModel
    prepared: PreparedData
    work_dir: Path

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The arguments that all trainers of TRL have in common, except for their config and rows."""
        return {"model": self.loaded.model, "processing_class": self.loaded.tokenizer}


@dataclass(frozen=True)
class TrainResult:
    """The metrics of a training, and the values that they are computed from."""

    metrics: dict[str, float]
    losses: Sequence[tuple[int, float]] = ()
    """Optimizer step and training loss."""
    eval_results: Sequence[EvalResult] = ()
    fold_losses: Sequence[float] = ()
    """The loss of each fold of the cross-validation that preceded the training."""
    energy: EnergyUse = field(default_factory=EnergyUse)
    learning_rates: Sequence[tuple[int, float]] = ()
    """Optimizer step and learning rate."""
    rewards: Sequence[RewardPoint] = ()
    """Rewards of a method that generates answers."""
    preflight: Sequence[PreflightFinding] = ()
    """Results of the checks before the first step of this attempt."""
    row_losses: RowLossHistory = field(default_factory=RowLossHistory)
    """Losses of the validation rows at the compared evaluations. Empty for methods whose loss is not one of tokens."""
