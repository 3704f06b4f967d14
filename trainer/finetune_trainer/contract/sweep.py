"""Parameters of a FineTuneSweep: which fields of `Training` it sets, and the configurations that they span."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from pydantic import ConfigDict, Field

from finetune_trainer.contract.base import Model, cel_rules
from finetune_trainer.contract.training import (
    BatchSize,
    Beta,
    Epochs,
    LearningRate,
    LoraAlpha,
    LoraDropout,
    LoraRank,
    MaxGradNorm,
    MaxSteps,
    Scheduler,
    WarmupRatio,
    WeightDecay,
)

MAX_TRIALS = 100
"""Maximum number of trials of a sweep. Its status has a row for each."""
_MAX_DRAWS_PER_CONFIGURATION = 100
_SIGNIFICANT_DIGITS = 3
_DIGITS = 9  # so that 0.28 * 25 is 7

NumberT = TypeVar("NumberT", float, int)
Value = float | int | str
PARAMETER_PATHS: dict[str, tuple[str, ...]] = {
    "learningRate": ("training", "learningRate"),
    "loraRank": ("training", "lora", "rank"),
    "loraAlpha": ("training", "lora", "alpha"),
    "loraDropout": ("training", "lora", "dropout"),
    "epochs": ("training", "epochs"),
    "maxSteps": ("training", "maxSteps"),
    "batchSize": ("training", "batchSize"),
    "gradientAccumulation": ("training", "gradientAccumulation"),
    "scheduler": ("training", "scheduler"),
    "warmupRatio": ("training", "warmupRatio"),
    "weightDecay": ("training", "weightDecay"),
    "maxGradNorm": ("training", "maxGradNorm"),
    "beta": ("training", "beta"),
}
"""The field of a FineTuneJob's spec that each parameter sets."""
COMPARABLE_PARAMETERS = ("learningRate", "loraRank", "loraAlpha", "loraDropout", "weightDecay", "maxGradNorm")
"""Parameters that halving allows: at the same step, trials have seen the same rows at the same point of the same
schedule, and their losses mean the same."""


class ParameterValues(Model, Generic[NumberT]):
    """ParameterValues are the values of a parameter to try, or the range that random values are drawn from."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                "has(self.values) ? !has(self.min) && !has(self.max) : has(self.min) && has(self.max)",
                "set either values, or min and max",
            ),
            (
                "!has(self.values) || self.values.all(i, self.values.exists_one(j, i == j))",
                "values must be different; spec.seeds trains the same configuration several times",
            ),
            ("!has(self.min) || !has(self.max) || self.min < self.max", "min must be less than max"),
            ("self.scale != 'log' || !has(self.min) || double(self.min) > 0.0", "scale log needs a min greater than 0"),
        )
    )

    values: list[NumberT] | None = Field(default=None, min_length=1, max_length=32)
    """values are the values to try."""
    min: NumberT | None = None
    """min is the lowest random value. It needs `search.type: random`."""
    max: NumberT | None = None
    """max is the highest random value."""
    scale: Literal["linear", "log"] = "linear"
    """scale is the scale on which random values between `min` and `max` are uniform. Defaults to linear."""

    def draw(self, generator: random.Random) -> Value:
        """Return a random value. Raises `ValueError` without values and without a range."""
        if self.values:
            return generator.choice(self.values)
        if self.min is None or self.max is None:
            raise ValueError("set either values, or min and max")
        if self.scale == "log":
            value = math.exp(generator.uniform(math.log(self.min), math.log(self.max)))
        else:
            value = generator.uniform(self.min, self.max)
        rounded = round(value) if isinstance(self.min, int) else float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
        return min(max(rounded, self.min), self.max)


class SchedulerValues(Model):
    """SchedulerValues are the schedulers to try."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("self.values.all(i, self.values.exists_one(j, i == j))", "values must be different")
        )
    )

    values: list[Scheduler] = Field(min_length=1, max_length=3)
    """values are the values to try."""

    def draw(self, generator: random.Random) -> Value:
        """Return a random value."""
        return generator.choice(self.values)


class SweepParameters(Model):
    """SweepParameters are the parameters that a FineTuneSweep varies. All other fields have the value of the
    template."""

    learning_rate: ParameterValues[LearningRate] | None = None
    """learningRate sets `training.learningRate`. The values 1e-4, 3e-4 and 1e-3 contain the best one for most
    models."""
    lora_rank: ParameterValues[LoraRank] | None = None
    """loraRank sets `training.lora.rank`."""
    lora_alpha: ParameterValues[LoraAlpha] | None = None
    """loraAlpha sets `training.lora.alpha`."""
    lora_dropout: ParameterValues[LoraDropout] | None = None
    """loraDropout sets `training.lora.dropout`."""
    epochs: ParameterValues[Epochs] | None = None
    """epochs sets `training.epochs`."""
    max_steps: ParameterValues[MaxSteps] | None = None
    """maxSteps sets `training.maxSteps`."""
    batch_size: ParameterValues[BatchSize] | None = None
    """batchSize sets `training.batchSize`."""
    gradient_accumulation: ParameterValues[BatchSize] | None = None
    """gradientAccumulation sets `training.gradientAccumulation`."""
    scheduler: SchedulerValues | None = None
    """scheduler sets `training.scheduler`."""
    warmup_ratio: ParameterValues[WarmupRatio] | None = None
    """warmupRatio sets `training.warmupRatio`."""
    weight_decay: ParameterValues[WeightDecay] | None = None
    """weightDecay sets `training.weightDecay`."""
    max_grad_norm: ParameterValues[MaxGradNorm] | None = None
    """maxGradNorm sets `training.maxGradNorm`."""
    beta: ParameterValues[Beta] | None = None
    """beta sets `training.beta`, for the methods dpo and kto."""


DEFAULT_PARAMETERS = SweepParameters(learning_rate=ParameterValues(values=[1e-4, 3e-4, 1e-3]))


class Configuration(Model):
    """Configuration is one value for each parameter of a FineTuneSweep."""

    learning_rate: LearningRate | None = None
    """learningRate is the value of `training.learningRate`."""
    lora_rank: LoraRank | None = None
    """loraRank is the value of `training.lora.rank`."""
    lora_alpha: LoraAlpha | None = None
    """loraAlpha is the value of `training.lora.alpha`."""
    lora_dropout: LoraDropout | None = None
    """loraDropout is the value of `training.lora.dropout`."""
    epochs: Epochs | None = None
    """epochs is the value of `training.epochs`."""
    max_steps: MaxSteps | None = None
    """maxSteps is the value of `training.maxSteps`."""
    batch_size: BatchSize | None = None
    """batchSize is the value of `training.batchSize`."""
    gradient_accumulation: BatchSize | None = None
    """gradientAccumulation is the value of `training.gradientAccumulation`."""
    scheduler: Scheduler | None = None
    """scheduler is the value of `training.scheduler`."""
    warmup_ratio: WarmupRatio | None = None
    """warmupRatio is the value of `training.warmupRatio`."""
    weight_decay: WeightDecay | None = None
    """weightDecay is the value of `training.weightDecay`."""
    max_grad_norm: MaxGradNorm | None = None
    """maxGradNorm is the value of `training.maxGradNorm`."""
    beta: Beta | None = None
    """beta is the value of `training.beta`."""

    def describe(self) -> str:
        """Return the values as text, such as `learningRate 0.0001, loraRank 8`."""
        return ", ".join(f"{name} {value}" for name, value in self.to_json().items())


class Search(Model):
    """Search configures which configurations of the parameters are tried."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("(self.type == 'random') == has(self.trials)", "search.type random needs trials, and grid has none")
        )
    )

    type: Literal["grid", "random"] = "grid"
    """type is `grid` for all combinations of the values, or `random` for combinations of random values. Defaults to
    grid."""
    trials: int | None = Field(default=None, ge=1, le=MAX_TRIALS)
    """trials is the number of random configurations."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    """seed is the random seed of the values. Defaults to 42."""


class Halving(Model):
    """Halving ends the worst trials early (successive halving)."""

    at_steps: list[Annotated[int, Field(ge=1, le=2**31 - 1)]] = Field(min_length=1, max_length=8)
    """atSteps are the optimizer steps at which all trials are compared by their validation loss. Each is suspended
    there until the others have reached it."""
    keep_fraction: float = Field(default=0.5, gt=0, lt=1)
    """keepFraction is the fraction of the configurations that continue, rounded up. The trials of the others are
    cancelled. Defaults to 0.5."""

    def count_kept(self, configurations: int) -> int:
        """Return how many of the remaining configurations continue after a step."""
        return math.ceil(round(self.keep_fraction * configurations, _DIGITS))


def list_configurations(parameters: SweepParameters, search: Search) -> list[Configuration]:
    """Return the configurations, which are always the same for the same arguments. Random ones are distinct, so there
    are fewer than `search.trials` if the parameters have fewer combinations.

    Raises `ValueError` for a range in a grid.
    """
    varied = {name: value for name, value in parameters if value is not None}
    if search.type == "random":
        return _draw_configurations(varied, search)
    for name, parameter in varied.items():
        if not parameter.values:
            raise ValueError(f"{name}: a grid needs values")
    combinations = product(*(parameter.values for parameter in varied.values()))
    return [Configuration(**dict(zip(varied, combination, strict=True))) for combination in combinations]


def _draw_configurations(varied: dict[str, Any], search: Search) -> list[Configuration]:
    generator, drawn = random.Random(search.seed), dict[tuple[Value, ...], Configuration]()
    count = search.trials or 1
    for _ in range(count * _MAX_DRAWS_PER_CONFIGURATION):
        values = {name: parameter.draw(generator) for name, parameter in varied.items()}
        drawn.setdefault(tuple(values.values()), Configuration(**values))
        if len(drawn) == count:
            break
    return list(drawn.values())


class Trial(Model):
    """Trial is one run of a sweep: a configuration with a seed."""

    number: int
    """Number of the trial, from 1 on."""
    configuration: int
    """Number of the configuration, from 1 on."""
    values: Configuration
    seed: int
    """`training.seed` of the run."""


def list_trials(configurations: Sequence[Configuration], seeds: int, first_seed: int) -> list[Trial]:
    """Return the trials: each configuration with the first seed, then each one with the next seed, and so on."""
    return [
        Trial(
            number=seed_index * len(configurations) + index + 1,
            configuration=index + 1,
            values=values,
            seed=first_seed + seed_index,
        )
        for seed_index in range(seeds)
        for index, values in enumerate(configurations)
    ]


def apply_trial(spec: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """Return a copy of a FineTuneJob's spec, as JSON, with the values and the seed of a trial."""
    result = _set_value(spec, ("training", "seed"), trial.seed)
    for name, value in trial.values.to_json().items():
        result = _set_value(result, PARAMETER_PATHS[name], value)
    return result


def _set_value(spec: dict[str, Any], path: tuple[str, ...], value: Value) -> dict[str, Any]:
    name, *rest = path
    if not rest:
        return {**spec, name: value}
    nested = cast("dict[str, Any]", spec.get(name, {}))
    return {**spec, name: _set_value(nested, tuple(rest), value)}
