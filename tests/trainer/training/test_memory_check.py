"""The check that a run fits its GPU, before its weights are downloaded."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from tests.support.trainer.model_shapes import LLAMA_8B, make_config

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.fitting_settings import RunSize
from finetune_trainer.training.memory_check import Capacity, check_memory, log_memory, predict_memory
from finetune_trainer.training.single_run import build_memory_advice

SIZE = RunSize(LLAMA_8B, np.full(1000, 2048))
GIB = 2**30


def predict_and_check(config: TrainerConfig, size: RunSize, backend: str, capacity: Capacity) -> None:
    prediction = predict_memory(config, size, backend, capacity)
    check_memory(prediction, capacity, size)
    log_memory(prediction, capacity)


def make_capacity(gibibytes: float, kind: str = "GPU") -> Capacity:
    return Capacity(kind, round(gibibytes * GIB), round(gibibytes * GIB))


def test_memory_check_run_too_large_ends_with_numbers_and_nearest_settings() -> None:
    pattern = r"needs about .* \(base model 15\.0 GiB, .* but there are 14\.0 GiB; set model.quantization nf4, .* GiB$"
    with pytest.raises(TrainerError, match=pattern) as caught:
        predict_and_check(make_config(precision="bf16"), SIZE, "transformers", make_capacity(14))
    assert caught.value.reason is Reason.OUT_OF_MEMORY
    assert all(name in caught.value.message for name in ("adapter", "activations", "logits"))


def test_memory_check_run_within_error_of_estimate_is_only_warned(caplog: pytest.LogCaptureFixture) -> None:
    needed = SIZE.estimate(make_config(precision="fp32")).total / GIB
    for factor, level in ((1.1, logging.WARNING), (0.5, logging.INFO)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            predict_and_check(make_config(precision="fp32"), SIZE, "transformers", make_capacity(needed / factor))
        (record,) = caplog.records
        assert (record.levelno, record.message.startswith(f"memory: predicted {needed:.1f} GiB of ")) == (level, True)
    with pytest.raises(TrainerError, match="the run needs"):
        predict_and_check(make_config(precision="fp32"), SIZE, "transformers", make_capacity(needed / 1.2))


@pytest.mark.parametrize(("backend", "kind"), [("unsloth", "GPU"), ("transformers", "host")])
def test_memory_check_counts_activations_of_transformers_on_gpu_only(backend: str, kind: str) -> None:
    config = make_config(batchSize=64, gradientCheckpointing=False, precision="fp32")
    predict_and_check(config, SIZE, backend, make_capacity(40, kind))
    with pytest.raises(TrainerError, match=f"of {kind} memory"):
        predict_and_check(config, SIZE, backend, make_capacity(20, kind))


def test_memory_advice_names_accumulation_unless_the_step_has_a_global_size() -> None:
    advice = [build_memory_advice(make_config(**settings)) for settings in ({}, {"globalBatchSize": 8})]
    assert "lower training.batchSize (and raise training.gradientAccumulation accordingly) or model" in advice[0]
    assert "lower training.batchSize or model.maxLength" in advice[1]
