"""The losses of active runs, as this server has seen them in the status."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from finetune_operator.api import FineTuneJob
from finetune_trainer.records.evaluation import EvaluationReport, LossPoint, OverfittingResult

MAX_RUNS = 200
MAX_POINTS = 1000
"""Of a curve with more points, every second one is kept."""


@dataclass
class _Curves:
    training: dict[int, float] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)


class LossHistory:
    """Remembers the losses of runs by step. Threads may use it at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._curves: OrderedDict[str, _Curves] = OrderedDict()

    def record(self, job: FineTuneJob) -> None:
        """Add the losses in the status of a run."""
        progress = job.status.progress if job.status else None
        if progress is None or progress.step is None:
            return
        with self._lock:
            curves = self._curves.setdefault(job.metadata.uid, _Curves())
            self._curves.move_to_end(job.metadata.uid)
            _add(curves.training, progress.step, progress.loss)
            if progress.eval_loss not in curves.validation.values():
                _add(curves.validation, progress.step, progress.eval_loss)
            while len(self._curves) > MAX_RUNS:
                self._curves.popitem(last=False)

    def get_curves(self, job: FineTuneJob) -> EvaluationReport:
        """Return the losses that were seen, in the form of an evaluation."""
        with self._lock:
            curves = self._curves.get(job.metadata.uid, _Curves())
            return EvaluationReport(
                training_losses=_list_points(curves.training),
                validation_losses=_list_points(curves.validation),
                overfitting=OverfittingResult(verdict="unknown", message=""),
            )


def _add(curve: dict[int, float], step: int, loss: float | None) -> None:
    if loss is None:
        return
    curve[step] = loss
    if len(curve) > MAX_POINTS:
        for dropped in sorted(curve)[1::2]:
            del curve[dropped]


def _list_points(curve: dict[int, float]) -> list[LossPoint]:
    return [LossPoint(step=step, loss=loss) for step, loss in sorted(curve.items())]
