"""How many tokens a model has positions for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def max_positions(config: PretrainedConfig) -> int | None:
    """The most tokens that the model can read at once; none if its config sets no limit."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found
