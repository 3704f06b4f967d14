"""Measures catastrophic forgetting. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.evaluation.losses import measure_perplexity
from finetune_trainer.modeling.batch_limits import MAX_LOSS_TOKENS
from finetune_trainer.modeling.likelihood import LabeledTokens, compute_losses, measure_base_and_tuned
from finetune_trainer.modeling.loading import LoadedModel
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.records.evaluation import Measure


def measure_forgetting(
    loaded_model: LoadedModel, heartbeat: Callable[[], None], max_batch_tokens: int = MAX_LOSS_TOKENS
) -> Measure:
    """Return `generalPerplexity`, the perplexity of general text that is not part of the data."""
    rows = tokenize_general_text(loaded_model)
    base, tuned = measure_base_and_tuned(
        loaded_model.model, lambda: compute_losses(loaded_model.model, rows, heartbeat, max_batch_tokens)
    )
    measure = measure_perplexity(base.token_counts, base.sums, tuned.sums)
    return measure.model_copy(update={"name": "generalPerplexity"})


def tokenize_general_text(loaded_model: LoadedModel) -> list[LabeledTokens]:
    """Return the paragraphs of general text in tokens, each truncated to the positions of the model."""
    rows, positions = [], get_max_positions(loaded_model.model.get_base_model().config)
    for paragraph in load_general_text():
        ids = loaded_model.tokenizer(paragraph, add_special_tokens=True, verbose=False)["input_ids"][:positions]
        rows.append(LabeledTokens(ids, [IGNORE_INDEX, *ids[1:]]))
    return rows


def load_general_text() -> list[str]:
    """Return paragraphs of general English that were written for this measurement."""
    text = resources.files("finetune_trainer.evaluation").joinpath("general_text.txt").read_text(encoding="utf-8")
    return [paragraph.replace("\n", " ").strip() for paragraph in text.split("\n\n")]
