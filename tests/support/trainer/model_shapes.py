"""Sizes of published models, and configs to estimate with."""

from __future__ import annotations

from typing import Any

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.training.model_shape import ModelShape

LLAMA_8B = ModelShape(
    parameters=8_030_261_248,
    quantizable=6_979_321_856,
    layer_parameters=218_112_000,
    largest_linear=58_720_256,
    trainable=41_943_040,
    adapter_tensors=448,
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    vocab_size=128_256,
    attention_size=4096,
    key_value_size=1024,
    norm_size=8192,
    adapter_input_size=38_912,
)
LLAMA_1B = ModelShape(
    parameters=1_235_814_400,
    quantizable=973_078_528,
    layer_parameters=60_821_504,
    largest_linear=16_777_216,
    trainable=11_272_192,
    adapter_tensors=224,
    num_layers=16,
    hidden_size=2048,
    intermediate_size=8192,
    vocab_size=128_256,
    attention_size=2048,
    key_value_size=512,
    norm_size=4096,
    adapter_input_size=20_480,
)
"""Llama-3.2-1B, whose embeddings are also its output head."""


def make_config(quantization: str = "none", output: dict[str, Any] | None = None, **training: Any) -> TrainerConfig:
    """Return the config of a run with rows of up to 2048 tokens, and fields of `training`."""
    content = {
        "model": {"uri": "s3://models/llama", "maxLength": 2048, "quantization": quantization},
        "dataset": {"sources": [{"uri": "s3://data/x.jsonl"}]},
        "training": {"maxSteps": 1, **training},
        "output": {"uri": "s3://results/x", **(output or {})},
    }
    return TrainerConfig.model_validate(content)
