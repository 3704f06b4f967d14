"""Writes the results of a sweep: `sweep.json`, `best.json` and `report.html`."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean, stdev

from finetune_trainer.contract import SweepReport, SweepReportTask, TrialRow
from finetune_trainer.records.evaluation import EVALUATION_NAME, Estimate
from finetune_trainer.records.manifest import REPORT_NAME
from finetune_trainer.records.sweep import (
    BEST_NAME,
    SWEEP_NAME,
    BestConfiguration,
    ConfigurationResult,
    SweepRecord,
)
from finetune_trainer.reporting.sweep_page import render_sweep_page
from finetune_trainer.storage import S3, Location, put_bytes
from finetune_trainer.tasks.sweep_comparison import compare_best, get_first_complete
from finetune_trainer.tasks.trial_results import NotReadable, read_estimate, read_manifest

_MAX_READERS = 8
_MAX_TEST_METRICS = 8
_MAX_NAME_CHARS = 64
_TEST_PREFIX = "test"
_VALUE_TOLERANCE = 1e-6
"""Relative tolerance within which two values are those of one run. The status may have rounded its own."""


def write_report(s3: S3, task: SweepReportTask) -> SweepReport:
    """Compare the trials and write the files. Can be repeated: the same trials give the same files."""
    output = Location.parse_folder(task.output_uri)
    record = build_record(s3, task)
    put_bytes(s3, output.child(SWEEP_NAME), record.to_bytes())
    best = _build_best(record)
    if best:
        put_bytes(s3, output.child(BEST_NAME), best.to_bytes())
    put_bytes(s3, output.child(REPORT_NAME), render_sweep_page(record, output).encode())
    return SweepReport(
        report_uri=str(output.child(REPORT_NAME)),
        verdict=record.verdict,
        message=record.message,
        change=record.change,
        test=record.test,
    )


def build_record(s3: S3, task: SweepReportTask) -> SweepRecord:
    """Return the configurations in their order, with what the files of the trials say about them."""
    results, problems = _add_intervals(s3, task.objective, _group_trials(task))
    ranked = [result for result in results if result.rank is not None]
    comparison = compare_best(s3, task, ranked)
    try:
        test = _select_test_metrics(read_manifest(s3, get_first_complete(ranked[0])).metrics) if ranked else {}
    except NotReadable as error:
        test, problems = {}, [*problems, str(error)]
    return SweepRecord(
        sweep=task.sweep,
        objective=task.objective,
        verdict=comparison.verdict,
        message=comparison.message,
        change=comparison.change,
        compared=comparison.compared,
        test=test,
        configurations=results,
        problems=problems,
    )


def _group_trials(task: SweepReportTask) -> list[ConfigurationResult]:
    """Return the configurations: the ranked ones, the best first, then the others."""
    trials: dict[int, list[TrialRow]] = {}
    for trial in task.trials:
        trials.setdefault(trial.configuration, []).append(trial)
    complete = {trial.configuration for trial in task.trials if trial.value is not None}
    ranking = [number for number in dict.fromkeys(task.ranking) if number in complete]
    ranks = {number: rank for rank, number in enumerate(ranking, 1)}
    numbers = [*ranking, *(number for number in trials if number not in ranks)]
    return [_summarize(trials[number], ranks.get(number)) for number in numbers]


def _summarize(trials: list[TrialRow], rank: int | None) -> ConfigurationResult:
    values = [trial.value for trial in trials if trial.value is not None]
    return ConfigurationResult(
        configuration=trials[0].configuration,
        rank=rank,
        parameters=trials[0].parameters,
        value=fmean(values) if values else None,
        deviation=stdev(values) if len(values) > 1 else None,
        gpu_seconds=sum(trial.gpu_seconds or 0 for trial in trials),
        trials=trials,
    )


def _add_intervals(
    s3: S3, metric: str, results: list[ConfigurationResult]
) -> tuple[list[ConfigurationResult], list[str]]:
    """Add the interval of each configuration with one complete trial. Returns the problems, too."""
    with ThreadPoolExecutor(_MAX_READERS, "trial") as pool:
        outcomes = list(pool.map(lambda result: _read_interval(s3, metric, result), results))
    problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
    completed = [
        result.model_copy(update={"low": outcome.low, "high": outcome.high})
        if isinstance(outcome, Estimate)
        else result
        for result, outcome in zip(results, outcomes, strict=True)
    ]
    return completed, problems


def _read_interval(s3: S3, metric: str, result: ConfigurationResult) -> Estimate | str | None:
    """Return the estimate of the only complete trial, None without one, or why it cannot be read."""
    if result.value is None or result.deviation is not None:
        return None
    trial = get_first_complete(result)
    try:
        estimate = read_estimate(s3, trial, metric)
    except NotReadable as error:
        return str(error)
    if estimate and not math.isclose(estimate.value, result.value, rel_tol=_VALUE_TOLERANCE):
        return f"{trial.adapter_uri}/{EVALUATION_NAME} is no longer that of {trial.name}"
    return estimate


def _select_test_metrics(metrics: dict[str, float]) -> dict[str, float]:
    names = [name for name in metrics if name.startswith(_TEST_PREFIX) and len(name) <= _MAX_NAME_CHARS]
    return {name: metrics[name] for name in names[:_MAX_TEST_METRICS]}


def _build_best(record: SweepRecord) -> BestConfiguration | None:
    """Return the best configuration, or None if no trial is complete."""
    best = record.configurations[0] if record.configurations else None
    if best is None or best.rank is None or best.value is None:
        return None
    trial = get_first_complete(best)
    return BestConfiguration(
        configuration=best.configuration,
        parameters=best.parameters,
        run=trial.name,
        adapter_uri=trial.adapter_uri,
        digest=trial.digest,
        metric=record.objective,
        value=best.value,
    )
