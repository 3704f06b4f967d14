"""Trials of a sweep with published results in S3, and the tasks of their report."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tests.support.trainer.run_records import make_manifest

from finetune_trainer.contract import Configuration, SweepReportTask, TrialRow
from finetune_trainer.records.evaluation import Estimate, EvaluationReport, Measure, OverfittingResult, RowScores
from finetune_trainer.records.manifest import compute_digest

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

LEARNING_RATES = (1e-4, 3e-4, 1e-3)
ROW_TOKENS = 20


def make_trial(number: int, value: float | None, learning_rate: float = 3e-4, **fields: Any) -> TrialRow:
    """Return a trial, which is complete if it has a value."""
    defaults: dict[str, Any] = {
        "name": f"lr-{number}",
        "configuration": number,
        "parameters": Configuration(learning_rate=learning_rate),
        "seed": 42,
        "phase": "Failed" if value is None else "Complete",
        "gpu_seconds": 1000 + number,
    }
    return TrialRow(value=value, **(defaults | fields))


def make_task(output_uri: str, trials: Sequence[TrialRow], ranking: Sequence[int], **fields: Any) -> SweepReportTask:
    defaults = {"output_uri": output_uri, "sweep": "support/lr", "objective": "evalLoss"}
    return SweepReportTask(trials=list(trials), ranking=list(ranking), **(defaults | fields))


def draw_row_losses(loss: float, count: int, noise: float, seed: int) -> list[float]:
    """Return the loss per token of each row, with this mean. Rows have the same difficulty for each loss and seed."""
    generator = random.Random(seed)
    values = [index / count + generator.gauss(0, noise) for index in range(count)]
    return [loss + value - fmean(values) for value in values]


def publish_trial(
    s3: S3Server, output_uri: str, trial: TrialRow, losses: Sequence[float], **metrics: float
) -> TrialRow:
    """Store the files of a complete trial, and return it with its URI and digest."""
    uri = f"{output_uri}/{trial.name}"
    lines = [
        RowScores(
            row=f"sha256:{index:064x}",
            reference="",
            answers={},
            scores={"tuned": {"lossSum": loss * ROW_TOKENS, "lossTokens": ROW_TOKENS}},
        )
        for index, loss in enumerate(losses)
    ]
    s3.put(f"{uri}/evaluation.jsonl", "\n".join(line.model_dump_json(by_alias=True) for line in lines).encode())
    value = trial.value or 0
    estimate = Estimate(value=value, low=value - 0.05, high=value + 0.05, samples=len(losses))
    evaluation = EvaluationReport(
        measures=[Measure(name="evalLoss", higher_is_better=False, tuned=estimate)],
        overfitting=OverfittingResult(verdict="none", message=""),
    )
    s3.put(f"{uri}/evaluation.json", evaluation.model_dump_json(by_alias=True, exclude_none=True).encode())
    manifest = make_manifest(metrics={"evalLoss": value, **metrics}).to_bytes()
    s3.put(f"{uri}/manifest.json", manifest)
    return trial.model_copy(update={"adapter_uri": uri, "digest": compute_digest(manifest)})
