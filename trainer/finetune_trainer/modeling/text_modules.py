"""Tells the language part of a multimodal model from its other parts. Imports torch lazily, through the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_multimodal(model: PreTrainedModel) -> bool:
    """Return whether the model has parts for images, audio or video, so that its text settings are a part of its
    config."""
    return model.config.get_text_config() is not model.config


def find_language_prefix(model: PreTrainedModel) -> str:
    """Return the path of the language part of a base model with a dot at its end, such as `model.language_model.`.

    It is empty if the whole model is the language part.
    """
    if not is_multimodal(model):
        return ""
    decoder = model.get_decoder()
    path = next(path for path, module in model.named_modules() if module is decoder)
    return f"{path}." if path else ""


def is_language_module(model: PreTrainedModel, path: str) -> bool:
    """Return whether the module at `path` of a base model is outside of the towers for images, audio and video and
    their projectors. Rows are text, so these other parts would get no gradient."""
    return path.startswith(find_language_prefix(model)) or model.get_submodule(path) is model.get_output_embeddings()


def is_head_in_decoder(model: PreTrainedModel) -> bool:
    """Return whether the output head is a part of what transformers calls the decoder, as in Llama 4. A loss in chunks
    expects the head outside: it reads hidden states of what is called without it."""
    head = model.get_output_embeddings()
    return any(module is head for module in model.get_decoder().modules())
