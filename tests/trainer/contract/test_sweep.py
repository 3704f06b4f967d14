"""The configurations and trials of a sweep are a function of its spec."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_trainer.contract import (
    METRICS_BY_METHOD,
    METRICS_BY_TASK,
    PARAMETER_PATHS,
    Configuration,
    Search,
    SweepParameters,
    Task,
    Training,
    apply_trial,
    list_configurations,
    list_trials,
)
from finetune_trainer.training.methods import METHODS


def _parse(**parameters: object) -> SweepParameters:
    return SweepParameters.model_validate(parameters)


def test_grid_has_all_combinations_in_order() -> None:
    parameters = _parse(learningRate={"values": [1e-4, 3e-4]}, loraRank={"values": [8, 16]})
    assert [each.to_json() for each in list_configurations(parameters, Search())] == [
        {"learningRate": rate, "loraRank": rank} for rate in (1e-4, 3e-4) for rank in (8, 16)
    ]


def test_metrics_of_methods_are_those_that_the_trainer_measures() -> None:
    assert {name: tuple(method.metrics) for name, method in METHODS.items()} == METRICS_BY_METHOD
    assert set(METRICS_BY_TASK) == set(get_args(Task))


def test_grid_range_is_refused() -> None:
    with pytest.raises(ValueError, match="learning_rate: a grid needs values"):
        list_configurations(_parse(learningRate={"min": 1e-4, "max": 1e-3}), Search())


@given(seed=st.integers(0, 2**31 - 1), trials=st.integers(1, 20))
def test_random_configurations_are_distinct_within_limits_and_repeatable(seed: int, trials: int) -> None:
    parameters = _parse(
        learningRate={"min": 1e-5, "max": 1e-2, "scale": "log"},
        loraRank={"min": 4, "max": 64, "scale": "log"},
        scheduler={"values": ["linear", "cosine"]},
    )
    search = Search(type="random", trials=trials, seed=seed)
    drawn = list_configurations(parameters, search)
    assert len({each.describe() for each in drawn}) == len(drawn) == trials
    assert drawn == list_configurations(parameters, search)
    for each in drawn:
        assert each.learning_rate
        assert 1e-5 <= each.learning_rate <= 1e-2
        assert each.lora_rank
        assert 4 <= each.lora_rank <= 64


def test_random_log_scale_draws_each_decade_as_often() -> None:
    parameters = _parse(learningRate={"min": 1e-5, "max": 1e-2, "scale": "log"})
    drawn = list_configurations(parameters, Search(type="random", trials=100, seed=1))
    decades = [math.floor(math.log10(each.learning_rate or 1)) for each in drawn]
    assert all(20 <= decades.count(decade) <= 46 for decade in (-5, -4, -3))


def test_random_fewer_combinations_than_trials_gives_all_of_them() -> None:
    drawn = list_configurations(_parse(loraRank={"values": [8, 16]}), Search(type="random", trials=50))
    assert sorted(each.lora_rank or 0 for each in drawn) == [8, 16]


def test_trials_repeat_configurations_with_later_seeds_last() -> None:
    configurations = [Configuration(lora_rank=8), Configuration(lora_rank=16)]
    trials = list_trials(configurations, seeds=2, first_seed=7)
    assert [(each.number, each.configuration, each.seed) for each in trials] == [
        (1, 1, 7), (2, 2, 7), (3, 1, 8), (4, 2, 8),
    ]  # fmt: skip


def test_apply_trial_sets_fields_of_contract_and_keeps_others() -> None:
    values = {"learningRate": 1e-3, "loraRank": 4, "loraAlpha": 8, "loraDropout": 0.1, "epochs": 2, "batchSize": 3,
              "gradientAccumulation": 5, "scheduler": "cosine", "warmupRatio": 0.1, "weightDecay": 0.2,
              "maxGradNorm": 2, "beta": 0.3}  # fmt: skip
    spec = {"training": {"epochs": 1, "packing": True, "lora": {"variant": "dora"}}, "output": {"uri": "s3://b/{name}"}}
    (trial,) = list_trials([Configuration.model_validate(values)], seeds=1, first_seed=3)
    result = apply_trial(spec, trial)
    training = Training.model_validate(result["training"])
    assert (training.learning_rate, training.lora.rank, training.lora.variant) == (1e-3, 4, "dora")
    assert (training.epochs, training.packing, training.seed, training.beta) == (2, True, 3, 0.3)
    assert result["output"] == spec["output"]
    assert spec["training"] == {"epochs": 1, "packing": True, "lora": {"variant": "dora"}}


def test_parameters_are_fields_of_configuration_and_of_contract() -> None:
    aliases = [field.alias for field in Configuration.model_fields.values()]
    assert aliases == [field.alias for field in SweepParameters.model_fields.values()] == list(PARAMETER_PATHS)


@pytest.mark.parametrize(
    "parameters",
    [{"learningRate": {"values": [2]}}, {"loraRank": {"values": [0]}}, {"loraRank": {"values": [1.5]}},
     {"learningRate": {"values": []}}, {"scheduler": {"values": ["step"]}}, {"rank": {"values": [8]}}],
)  # fmt: skip
def test_parameters_outside_of_contract_are_refused(parameters: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        _parse(**parameters)
