"""Finds the language part of a multimodal model. Needs no import of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_language_prefix(model: PreTrainedModel) -> str:
    """Return the path of the language part of a base model with a dot at its end, such as `model.language_model.`.

    It is empty if the whole model is the language part.
    """
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    path = next(path for path, module in model.named_modules() if module is decoder)
    return f"{path}." if path else ""


def is_head_in_decoder(model: PreTrainedModel) -> bool:
    """Return whether the output head is a part of what transformers calls the decoder, as in Llama 4. A loss in chunks
    expects the head outside: it reads hidden states of what is called without it."""
    head = model.get_output_embeddings()
    return any(module is head for module in model.get_decoder().modules())
