"""Plans the runs of a FineTuneSchedule or a FineTuneSweep: their number, steps, time and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

from cronsim import CronSim, CronSimError
from pydantic import Field, ValidationError

from finetune_trainer.config.loader import find_broken_rules
from finetune_trainer.contract import (
    Halving,
    Model,
    Reason,
    TrainerConfig,
    Trial,
    apply_trial,
    list_configurations,
    list_trials,
    split_cron_line,
)
from finetune_trainer.errors import TrainerError
from finetune_trainer.planning import evidence
from finetune_trainer.planning.plan import Plan, RunLength, RunResources, build_series_plan
from finetune_trainer.planning.sweep_settings import SweepSettings, read_settings

_COUNTED_DAYS = 28
_EARLY_PART = 4
"""Halving should not compare before the fourth part of the steps."""


class SeriesPlan(Model):
    """What the runs of a series would need. All fields that begin with `estimated` are computed."""

    run: Plan
    """The plan of a run with the values of the template."""
    runs: int
    """Number of runs: all trials of a sweep, or the runs of a schedule in 28 days that its cron line causes."""
    steps: int
    """Optimizer steps of all runs."""
    estimated_gpu_hours: dict[str, float]
    """Hours of training of all runs, multiplied by their GPUs, by type of GPU."""
    estimated_memory: int
    """Peak memory of the largest run on a GPU, in bytes."""
    trials: list[Trial] = Field(default=[])
    """The trials of a sweep."""
    warnings: list[str] = Field(default=[])
    """Values that are outside of what has worked elsewhere, with sources."""


def plan_sweep(spec: Mapping[str, Any], template: TrainerConfig, scratch: Path, resources: RunResources) -> SeriesPlan:
    """Build the plan of a FineTuneSweep from its spec and the config of its template.

    Raises `CONFIG_INVALID` for trials that the API server would reject, and as `build_plan`.
    """
    settings = read_settings(spec, template)
    trials, halving = _list_trials(settings, template), settings.halving
    variants = [_build_variant(template, trial) for trial in trials]
    plan, lengths = build_series_plan(template, variants, scratch, resources)
    shares = _compute_trained_shares(trials, lengths, halving)
    return SeriesPlan(
        run=plan,
        runs=len(trials),
        steps=round(sum(length.steps * share for length, share in zip(lengths, shares, strict=True))),
        estimated_gpu_hours=_sum_gpu_hours(lengths, shares, plan.workers),
        estimated_memory=max(length.estimated_memory for length in lengths),
        trials=trials,
        warnings=list(_list_sweep_warnings(trials, variants, lengths, halving)),
    )


def plan_schedule(
    spec: Mapping[str, Any], template: TrainerConfig, scratch: Path, resources: RunResources
) -> SeriesPlan:
    """Build the plan of a FineTuneSchedule for 28 days. Runs that data changes or requests cause are not counted.

    Raises `CONFIG_INVALID` for an invalid cron line, and as `build_plan`.
    """
    plan, (length,) = build_series_plan(template, [template], scratch, resources)
    count = count_runs(spec["schedule"]) if "schedule" in spec else 0
    return SeriesPlan(
        run=plan,
        runs=count,
        steps=plan.steps * count,
        estimated_gpu_hours=_sum_gpu_hours([length], [float(count)], plan.workers),
        estimated_memory=length.estimated_memory,
        warnings=list(evidence.list_warnings(template, length.rows_per_step, length.steps)),
    )


def _list_trials(settings: SweepSettings, template: TrainerConfig) -> list[Trial]:
    configurations = list_configurations(settings.parameters, settings.search)
    return list_trials(configurations, settings.seeds, template.training.seed)


def _build_variant(template: TrainerConfig, trial: Trial) -> TrainerConfig:
    """Return the config of a trial. Raises `CONFIG_INVALID` with the values of the trial."""
    where = f"trial {trial.number} ({trial.values.describe()})"
    try:
        variant = TrainerConfig.model_validate(apply_trial(template.to_json(), trial))
    except ValidationError as error:
        raise TrainerError(Reason.CONFIG_INVALID, f"{where}: {error.errors()[0]['msg']}") from error
    for path, message in find_broken_rules(variant):
        raise TrainerError(Reason.CONFIG_INVALID, f"{where}: {'.'.join(map(str, path))}: {message}")
    return variant


def _compute_trained_shares(
    trials: Sequence[Trial], lengths: Sequence[RunLength], halving: Halving | None
) -> list[float]:
    """Return the fraction of its steps that each trial is trained for, if halving ends the last configurations
    first."""
    remaining, ends = max(trial.configuration for trial in trials), [float(length.steps) for length in lengths]
    for step in sorted(halving.at_steps) if halving else ():
        remaining = halving.count_kept(remaining) if halving else remaining
        ends = [
            end if trial.configuration <= remaining else min(end, step) for trial, end in zip(trials, ends, strict=True)
        ]
    return [end / length.steps for end, length in zip(ends, lengths, strict=True)]


def _list_sweep_warnings(
    trials: Sequence[Trial], variants: Sequence[TrainerConfig], lengths: Sequence[RunLength], halving: Halving | None
) -> Iterator[str]:
    """Yield each warning once, with the trials that it is about."""
    numbers: dict[str, list[int]] = {}
    for trial, variant, length in zip(trials, variants, lengths, strict=True):
        for warning in evidence.list_warnings(variant, length.rows_per_step, length.steps):
            numbers.setdefault(warning, []).append(trial.number)
    for warning, found in numbers.items():
        names = f"trial{'s' if found[1:] else ''} {', '.join(map(str, found))}"
        yield f"{'all trials' if len(found) == len(trials) else names}: {warning}"
    if halving:
        yield from _list_halving_warnings(halving, min(length.steps for length in lengths))


def _list_halving_warnings(halving: Halving, steps: int) -> Iterator[str]:
    late = [step for step in halving.at_steps if step >= steps]
    if late:
        yield f"halving.atSteps {', '.join(map(str, late))}: trials have {steps} steps, so none is ended early there"
    if min(halving.at_steps) * _EARLY_PART < steps:
        yield (
            f"halving.atSteps {min(halving.at_steps)} is in the first quarter of {steps} steps: high learning rates "
            "often look worse early and win at the end"
        )


def _sum_gpu_hours(lengths: Sequence[RunLength], shares: Sequence[float], workers: int) -> dict[str, float]:
    return {
        gpu: round(
            sum(each.estimated_seconds[gpu] * share for each, share in zip(lengths, shares, strict=True))
            * workers
            / 3600,
            2,
        )
        for gpu in lengths[0].estimated_seconds
    }


def count_runs(schedule: str) -> int:
    """Return how often a cron line fires in the next 28 days. Clock changes are not considered."""
    start = datetime.now(UTC)
    end = start + timedelta(days=_COUNTED_DAYS)
    try:
        line = " ".join(split_cron_line(schedule))
        return sum(1 for _ in takewhile(lambda time: time <= end, CronSim(line, start)))
    except CronSimError as error:
        raise TrainerError(Reason.CONFIG_INVALID, f"spec.schedule: {schedule} is not a cron line: {error}") from error
    except ValueError as error:
        raise TrainerError(Reason.CONFIG_INVALID, str(error)) from error
