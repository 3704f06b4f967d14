"""Tests of Liger's kernels and of what they need: they equal the modules of transformers, and are refused elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from tests.support.trainer.tiny_model import QUIET_ENV, TRAINING_TIMEOUT, config
from tests.support.trainer.trainer_process import ROOT

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.kernels import check_family
from finetune_trainer.run_setup import resolve_run

LIGER = config({"kernels": "liger"})


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
def test_liger_kernels_equal_transformers() -> None:
    line = [sys.executable, "-m", "tests.matrix.kernels", "llama"]  # `make test-matrix` compares all families
    done = subprocess.run(line, env={**os.environ, **QUIET_ENV}, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines() if "gradient" in line] == ["llama"]


@pytest.mark.training
@pytest.mark.parametrize(
    ("training", "problem"),
    [
        ({"kernels": "liger"}, "training.kernels is liger, which needs a GPU; set it to standard"),
        ({"optimizer": "pagedAdamw8bit"}, "training.optimizer is pagedAdamw8bit, which needs a GPU; set it to adamw"),
    ],
    ids=["liger", "paged"],
)
def test_run_without_gpu_is_refused_before_inputs_are_listed(training: dict[str, Any], problem: str) -> None:
    with pytest.raises(TrainerError) as caught:
        resolve_run(config(training))
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert caught.value.message == f"there is no GPU, but {problem}"


def test_liger_with_unsupported_family_is_refused() -> None:
    with pytest.raises(TrainerError, match=r"does not support the model family gpt2, .* to standard$") as caught:
        check_family(LIGER, lambda: {"model_type": "gpt2"})
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_liger_family_check_needs_config_of_supported_model_only() -> None:
    check_family(LIGER, lambda: {"model_type": "llama"})
    check_family(LIGER, dict)  # an invalid config.json, which loading the model reports
    check_family(config({}), pytest.fail)
