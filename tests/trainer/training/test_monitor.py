"""Progress and its limits, without torch."""

from __future__ import annotations

import json
import math
from itertools import count

import pytest
from tests.support.trainer.tiny_training import RecordingReporter

from finetune_trainer.contract import Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.monitor import Step, TrainingMonitor


def make_step(number: int, total: int = 10, loss: float = 1.0, **logs: float) -> Step:
    return Step(number, total, number / total, number * 100, {"loss": loss, **logs})


@pytest.fixture
def progress() -> RecordingReporter:
    return RecordingReporter()


def test_monitor_reports_speed_and_remaining_time(progress: RecordingReporter) -> None:
    clock = count(100, 2)
    watch = TrainingMonitor(progress, clock=lambda: next(clock))
    watch.begin(10)
    assert (progress.get_latest().stage, progress.get_latest().total_steps) == (Stage.TRAINING, 10)
    for number in range(1, 5):
        watch.record_step(make_step(number))
    latest = progress.get_latest()
    assert (latest.step, latest.percentage, latest.epoch, latest.loss) == (4, 40, 0.4, 1.0)
    assert (latest.tokens_per_second, latest.estimated_remaining_seconds) == (50.0, 12)


def test_monitor_after_resume_estimates_remaining_time(progress: RecordingReporter) -> None:
    clock = count(100, 2)
    watch = TrainingMonitor(progress, clock=lambda: next(clock))
    watch.begin(10, resumed_steps=6, resumed_tokens=600)
    assert (progress.get_latest().step, progress.get_latest().percentage) == (6, 60)
    watch.record_step(make_step(7))
    assert progress.get_latest().estimated_remaining_seconds == 6  # three steps of two seconds each


def test_monitor_tracks_each_step(progress: RecordingReporter) -> None:
    watch = TrainingMonitor(progress, log_metrics=progress.track)
    watch.begin(10)
    watch.record_step(make_step(1, learning_rate=0.5))
    watch.record_eval_loss(1, 2.5)
    (first, metrics), second = progress.tracked_metrics
    assert (first, metrics.pop("tokensPerSecond") > 0) == (1, True)
    assert (metrics, second) == ({"loss": 1.0, "learningRate": 0.5}, (1, {"evalLoss": 2.5}))


def test_monitor_last_step_is_99_percent(progress: RecordingReporter) -> None:
    watch = TrainingMonitor(progress)
    watch.begin(1)
    watch.record_step(make_step(1, 1))
    assert (progress.get_latest().percentage, progress.get_latest().estimated_remaining_seconds) == (99, 0)


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"loss": math.inf}, {"loss": 1.0, "grad_norm": math.nan}])
def test_monitor_third_nan_in_a_row_ends_run(progress: RecordingReporter, bad: dict[str, float]) -> None:
    watch = TrainingMonitor(progress)
    watch.begin(10)
    for number, fields in enumerate([bad, bad, {"loss": 1.0}, bad, bad], start=1):
        watch.record_step(make_step(number, 10, **fields))
    with pytest.raises(TrainerError, match=r"up to step 6 of 10; lower training\.learningRate") as caught:
        watch.record_step(make_step(6, 10, **bad))
    assert caught.value.reason is Reason.NON_FINITE_LOSS
    json.dumps(progress.get_latest().to_json(), allow_nan=False)


def test_monitor_scaled_gradients_may_overflow(progress: RecordingReporter) -> None:
    watch = TrainingMonitor(progress, uses_loss_scaling=True)
    watch.begin(10)
    for number in range(1, 9):
        watch.record_step(make_step(number, grad_norm=math.inf))


def test_monitor_end_with_nan_loss_fails(progress: RecordingReporter) -> None:
    watch = TrainingMonitor(progress)
    watch.begin(1)
    watch.record_step(make_step(1, 1, math.nan))
    with pytest.raises(TrainerError) as caught:
        watch.finish()
    assert caught.value.reason is Reason.NON_FINITE_LOSS


def test_monitor_logs_at_most_every_twentieth(progress: RecordingReporter, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "finetune_trainer.training.monitor")
    watch = TrainingMonitor(progress, clock=lambda: 0.0)
    watch.begin(1000)
    for number in range(1, 1001):
        watch.record_step(make_step(number, 1000))
    assert 20 <= len(caplog.messages) <= 22
    assert caplog.messages[-1].startswith("step 1000/1000 loss 1.0000")
