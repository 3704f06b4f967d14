"""Progress of a run as Prometheus metrics, with the same numbers as `GET /progress`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from finetune_trainer.contract import CacheResult, Progress, Stage

if TYPE_CHECKING:
    from prometheus_client import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METRIC_PREFIX = "finetune_trainer_"


def render_metrics(progress: Progress, model_cache: CacheResult | None = None) -> bytes:
    """Return the metrics in the Prometheus text format. Unknown values are omitted."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_ProgressCollector(progress, model_cache))
    return generate_latest(registry)


class _ProgressCollector:
    """Collector for a single scrape."""

    def __init__(self, progress: Progress, model_cache: CacheResult | None) -> None:
        self._progress = progress
        self._model_cache = model_cache

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        for name, (help_text, value) in _list_gauges(self._progress).items():
            if value is not None:
                yield GaugeMetricFamily(METRIC_PREFIX + name, help_text, value)
        stage_gauge = GaugeMetricFamily(
            METRIC_PREFIX + "stage", "1 for the current stage, otherwise 0.", labels=["stage"]
        )
        for stage in Stage:
            stage_gauge.add_metric([stage.value], float(stage is self._progress.stage))
        yield stage_gauge
        if self._model_cache:
            cache_gauge = GaugeMetricFamily(
                METRIC_PREFIX + "model_cache", "1 for where the base model came from.", labels=["result"]
            )
            cache_gauge.add_metric([self._model_cache.value], 1)
            yield cache_gauge


def _list_gauges(progress: Progress) -> dict[str, tuple[str, float | None]]:
    remaining_seconds = progress.estimated_remaining_seconds
    return {
        "progress_ratio": ("Fraction of the optimizer steps that are done, 0 to 1.", progress.percentage / 100),
        "step": ("Optimizer steps done.", progress.step),
        "steps": ("Total optimizer steps.", progress.total_steps),
        "epoch": ("Passes over the training data that are done.", progress.epoch),
        "loss": (
            "Mean training loss of the last logged step: per supervised token (sft) or per row (dpo, kto).",
            progress.loss,
        ),
        "eval_loss": (
            "Mean loss on the validation data: per supervised token (sft) or per row (dpo, kto).",
            progress.eval_loss,
        ),
        "reward": ("Mean reward of the answers of the last step (grpo, rloo).", progress.reward),
        "flat_groups_ratio": (
            "Fraction of the prompts of the last step whose answers have equal rewards, 0 to 1 (grpo, rloo).",
            progress.flat_groups,
        ),
        "entropy": ("Mean entropy of the tokens of the last step, in nats (grpo).", progress.entropy),
        "answer_tokens": (
            "Mean length of the answers of the last step, in tokens (grpo, rloo).",
            progress.answer_tokens,
        ),
        "tokens_per_second": ("Tokens trained per second, without padding.", progress.tokens_per_second),
        "estimated_remaining_seconds": ("Estimated seconds until the end of the training.", remaining_seconds),
        "last_checkpoint_step": ("Optimizer step of the latest checkpoint.", progress.last_checkpoint_step),
        "last_checkpoint_timestamp_seconds": (
            "Time of latest checkpoint.",
            _to_unix_seconds(progress.last_checkpoint_time),
        ),
        "last_update_timestamp_seconds": (
            "Time of the last progress report.",
            _to_unix_seconds(progress.last_update_time),
        ),
    }


def _to_unix_seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None
