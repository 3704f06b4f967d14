"""The maximum number of positions of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_POSITIONS_KEY = "max_position_embeddings"
_MPT_POSITIONS_KEY = "max_seq_len"
"""MPT computes the ALiBi biases for this number of tokens, and fails beyond it."""


def get_max_positions(config: PreTrainedConfig) -> int | None:
    """Return the maximum length of a text in tokens, or None if the architecture sets no limit (Mamba, ALiBi).

    RoPE scaling counts as in vLLM, which may serve the result: for YaRN it is the original length times the factor,
    `linear` and `dynamic` multiply the configured length, all other types already include it.
    """
    text_config = config.get_text_config()
    values = text_config.to_dict()
    positions = values.get(text_config.attribute_map.get(_POSITIONS_KEY, _POSITIONS_KEY)) or values.get(
        _MPT_POSITIONS_KEY
    )
    if not positions or values.get("alibi"):
        return None
    if "gemma3" in text_config.model_type:  # its configured length is the scaled one
        return int(positions)
    factor = 1.0
    for rope in _list_rope_parameters(values.get("rope_parameters") or {}):
        rope_type = rope.get("rope_type", "default")
        if rope_type in ("linear", "dynamic", "yarn"):
            factor = rope.get("factor") or 1.0
        if rope_type == "yarn" and rope.get("factor"):
            positions = rope.get("original_max_position_embeddings", positions)
    return int(positions * factor)


def _list_rope_parameters(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the RoPE parameters: one set, or one for each type of layer."""
    nested = [parameters for parameters in values.values() if isinstance(parameters, dict)]
    yield from nested or [values]


def limit_max_length(config: TrainerConfig, positions: int | None) -> TrainerConfig:
    """Return the config with `model.maxLength` limited to the model's positions. It must not be stored."""
    if positions is None or config.model.max_length <= positions:
        return config
    model = config.model.model_copy(update={"max_length": positions})
    return config.model_copy(update={"model": model})
