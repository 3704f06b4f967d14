"""Settings of generation: what ends an answer, and how to keep a model's own settings out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finetune_trainer.data.end_of_turn import get_stop_token_ids

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def collect_end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: what the training teaches, the tokenizer's EOS, then the base model's own."""
    model_ids = model.generation_config.eos_token_id
    base_ids = model_ids if isinstance(model_ids, list) else [model_ids]
    return list(
        dict.fromkeys(token_id for token_id in (*get_stop_token_ids(tokenizer), *base_ids) if token_id is not None)
    )


def build_greedy_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The likeliest token each time until one ends the answer."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        eos_token_id=collect_end_token_ids(model, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id,
    )


@contextmanager
def ignore_model_config(model: PreTrainedModel) -> Iterator[None]:
    """Lets `generate` use nothing but the config that it is called with.

    It fills unset fields from the model's own (`_prepare_generation_config`), so a `repetition_penalty` or `num_beams`
    of the base model's generation_config.json would apply, whatever else the call asks for.
    """
    from peft import PeftModel
    from transformers import GenerationConfig

    base_model = model.get_base_model() if isinstance(model, PeftModel) else model
    original = base_model.generation_config
    base_model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base_model.generation_config = original
