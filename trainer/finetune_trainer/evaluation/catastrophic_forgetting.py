"""Whether the model forgets what its base knew. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from finetune_trainer.data.loss_masking import IGNORED
from finetune_trainer.evaluation.losses import perplexity
from finetune_trainer.modeling.likelihood import Tokens, base_and_tuned, losses
from finetune_trainer.modeling.loading import Loaded
from finetune_trainer.modeling.positions import max_positions
from finetune_trainer.records.evaluation import Measure


def forgetting(loaded: Loaded, alive: Callable[[], None]) -> Measure:
    """`generalPerplexity`: of text that is not the data's."""
    rows = general_rows(loaded)
    base, tuned = base_and_tuned(loaded.model, lambda: losses(loaded.model, rows, alive))
    found = perplexity(base.tokens, base.sums, tuned.sums)
    return found.model_copy(update={"name": "generalPerplexity"})


def general_rows(loaded: Loaded) -> list[Tokens]:
    """The paragraphs of general text as tokens, each cut to the positions that the model has."""
    rows, positions = [], max_positions(loaded.model.get_base_model().config)
    for paragraph in general_text():
        ids = loaded.tokenizer(paragraph, add_special_tokens=True, verbose=False)["input_ids"][:positions]
        rows.append(Tokens(ids, [IGNORED, *ids[1:]]))
    return rows


def general_text() -> list[str]:
    """Paragraphs of general English, written for this."""
    text = resources.files("finetune_trainer.evaluation").joinpath("general_text.txt").read_text(encoding="utf-8")
    return [each.replace("\n", " ").strip() for each in text.split("\n\n")]
