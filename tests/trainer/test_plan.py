"""What `plan` says beside what a run of the same config does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.trainer.tiny_model import chat

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.planning import estimates
from finetune_trainer.planning.architecture import Architecture
from finetune_trainer.planning.weights import parameters

if TYPE_CHECKING:
    pass

ROWS = [*(chat("Which lamp?", "The red one. " * count) for count in range(1, 9)), chat("x", "y " * 400)]
LLAMA_8B = Architecture(
    parameters=8_030_261_248,
    packable=6_979_321_856,
    trainable=41_943_040,
    layers=32,
    hidden=4096,
    intermediate=14336,
    vocabulary=128_256,
)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ((2**60).to_bytes(8, "little"), "claims to be 1152921504606846976 bytes long"),
        (b"\0\0", "claims to be 0 bytes long"),
        ((50).to_bytes(8, "little") + b"{}", "ends within its header"),
        ((4).to_bytes(8, "little") + b"nope", "is not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no safetensors file: its header is not a JSON object"),
        ((10).to_bytes(8, "little") + b'{"a": [1]}', "a tensor without a shape"),
    ],
    ids=["bomb", "short", "cut", "no JSON", "a list", "no shape"],
)
def test_weights_that_are_none(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(TrainerError, match=why) as caught:
        parameters(tmp_path)
    assert caught.value.reason is Reason.MODEL_INVALID


def settings(quantization: str = "none", **training: Any) -> TrainerConfig:
    content = {
        "model": {"uri": "s3://models/llama", "maxLength": 2048, "quantization": quantization},
        "dataset": {"sources": [{"uri": "s3://data/x.jsonl"}]},
        "training": {"maxSteps": 1, **training},
        "output": {"uri": "s3://results/x"},
    }
    return TrainerConfig.model_validate(content)


@pytest.mark.parametrize(
    ("asked", "smallest"),
    [
        (settings(), 24),
        (settings("nf4"), 16),
        (settings("int8"), 16),
        (settings(precision="fp32"), 80),
        (settings(gradientCheckpointing=False), 80),
        (settings(batchSize=64), 141),
        (settings(batchSize=1024), None),
    ],
    ids=["16 bits", "nf4", "int8", "32 bits", "no recomputation", "large batch", "huge batch"],
)
def test_the_smallest_gpu_for_an_8b_model(asked: TrainerConfig, smallest: int | None) -> None:
    fits = estimates.memory(asked, LLAMA_8B).fits()
    assert next((size for size, enough in fits.items() if enough), None) == smallest


def test_time_grows_with_tokens_and_parameters() -> None:
    asked = settings(gradientCheckpointing=False)
    once = estimates.seconds(asked, LLAMA_8B, 1_000_000)
    assert once["H100"] == pytest.approx(4 * 1e6 * 8.03e9 / (989e12 * 0.35), rel=0.01)
    half = replace(LLAMA_8B, parameters=LLAMA_8B.parameters // 2)
    assert estimates.seconds(asked, half, 2_000_000)["H100"] == pytest.approx(once["H100"])
    assert estimates.seconds(settings(), LLAMA_8B, 1_000_000)["H100"] == pytest.approx(once["H100"] * 1.5)
