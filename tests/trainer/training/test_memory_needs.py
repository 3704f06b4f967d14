"""The predicted memory, compared with counted bytes on the CPU and with measured peaks of a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.trainer.memory_runs import MemoryCase, compare_phases
from tests.support.trainer.model_shapes import LLAMA_1B, LLAMA_8B, make_config
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.training.memory_needs import CONTEXT_BYTES, RowTokens, estimate_memory, measure_rows

GIB = 2**30


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
@pytest.mark.parametrize(
    "case",
    [
        MemoryCase("activations", sizes={"num_hidden_layers": 2}, training={"batchSize": 2, "precision": "bf16"}),
        MemoryCase(
            "vocabulary",
            sizes={"num_hidden_layers": 1, "vocab_size": 9000},
            training={"batchSize": 1, "precision": "fp32", "gradientCheckpointing": False},
        ),
    ],
    ids=lambda case: str(case.name),
)
def test_memory_estimate_is_within_15_percent_of_counted_bytes(case: MemoryCase, tmp_path: Path) -> None:
    ratios = {phase: peak.ratio for phase, peak in compare_phases(case, tmp_path).items()}
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1), abs=0.15)


@pytest.mark.parametrize(
    ("training", "measured"),
    [
        ({"batchSize": 8, "gradientAccumulation": 1, "gradientCheckpointing": False}, 32.2),
        ({"batchSize": 4, "gradientAccumulation": 2}, 4.6),
    ],
    ids=["kept", "recomputed"],
)
def test_memory_estimate_matches_peak_measured_on_gpu(training: dict[str, Any], measured: float) -> None:
    """The peaks are those of docs/reference/benchmarks.md. PyTorch does not count the context of CUDA."""
    memory = estimate_memory(make_config(**training), LLAMA_1B)
    assert (memory.training - CONTEXT_BYTES) / GIB == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(
    ("job_config", "smallest"),
    [
        (make_config(), 24),
        (make_config("nf4"), 16),
        (make_config("int8"), 16),
        (make_config(precision="fp32"), 80),
        (make_config(gradientCheckpointing=False), 80),
        (make_config(batchSize=64), 141),
        (make_config(batchSize=1024), None),
    ],
    ids=["16 bits", "nf4", "int8", "32 bits", "no recomputation", "large batch", "huge batch"],
)
def test_memory_estimate_8b_model_gives_smallest_gpu(job_config: TrainerConfig, smallest: int | None) -> None:
    fits = estimate_memory(job_config, LLAMA_8B).fits_by_gpu_size()
    assert next((size for size, enough in fits.items() if enough), None) == smallest


def test_memory_estimate_reference_copy_adds_adapter_once() -> None:
    new = make_config(method="dpo")
    model = new.model.model_copy(update={"adapter_uri": "s3://adapters/first/"})
    continued = new.model_copy(update={"model": model})
    base = continued.model_copy(update={"training": new.training.model_copy(update={"reference": "base"})})
    sizes = [estimate_memory(each, LLAMA_8B).adapter for each in (new, continued, base)]
    assert sizes == [16 * LLAMA_8B.trainable, 20 * LLAMA_8B.trainable, 16 * LLAMA_8B.trainable]


def test_memory_estimate_8_bit_moments_save_6_bytes_per_parameter() -> None:
    plain, small = (estimate_memory(make_config(optimizer=name), LLAMA_8B) for name in ("adamw", "adamw8bit"))
    assert plain.training - small.training == 6 * LLAMA_8B.trainable


@pytest.mark.parametrize("training", [{}, {"batchSize": 8}, {"precision": "fp32"}], ids=str)
def test_memory_estimate_losses_of_evaluation_need_no_more_than_training(training: dict[str, Any]) -> None:
    memory = estimate_memory(make_config(**training), LLAMA_8B)
    assert memory.base + memory.context < memory.evaluation < memory.training == memory.total


def test_memory_estimate_counts_key_value_cache_of_answers() -> None:
    job_config = make_config(batchSize=1)
    answering = job_config.evaluation.model_copy(update={"sample_prompts": ["Who?"], "max_new_tokens": 2048})
    job_config = job_config.model_copy(update={"evaluation": answering})
    many_heads = replace(LLAMA_8B, key_value_size=4096)
    memory = estimate_memory(job_config, many_heads)
    assert memory.total == memory.evaluation
    cache_bytes = memory.evaluation - estimate_memory(job_config, LLAMA_8B).evaluation
    assert cache_bytes >= 2 * 32 * (4096 - 1024) * 4096 * 2, "two values of 16 bits for each of 4096 tokens"


def test_memory_estimate_sharded_rank_holds_its_share_and_two_layers() -> None:
    whole, sharded = (estimate_memory(make_config(), LLAMA_8B, ranks_per_model=ranks) for ranks in (1, 4))
    assert (whole.gathered, sharded.base) == (0, whole.base // 4)
    assert sharded.gathered == 2 * (2 * 218_112_000 + 8_030_261_248 - 32 * 218_112_000)
    assert (sharded.adapter, sharded.activations) == (whole.adapter, whole.activations)


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"batchSize": 2}, RowTokens(900, 1800, 2)),
        ({"batchSize": 2, "batching": "byLength"}, RowTokens(900, 1800, 2)),
        ({"batchSize": 4, "batching": "paddingFree"}, RowTokens(900, 1200, 1)),
        ({"batchSize": 2, "batching": "packed"}, RowTokens(900, 4096, 2)),
    ],
    ids=["padded", "by length", "padding-free", "packed"],
)
def test_row_tokens_follow_batching(training: dict[str, Any], expected: RowTokens) -> None:
    assert measure_rows(make_config(**training), np.array([100, 900, 100, 100])) == expected
