"""The texts of a tokenized row that the loss is computed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.data.loss_masking import IGNORE_INDEX, TokenizedConversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def decode_supervised(tokenizer: PreTrainedTokenizerBase, example: TokenizedConversation) -> list[str]:
    """Return the text of each run of tokens that the loss is computed on."""
    previous = IGNORE_INDEX
    runs: list[list[int]] = []
    for label in example.labels:
        if label != IGNORE_INDEX:
            runs = runs if previous != IGNORE_INDEX else [*runs, []]
            runs[-1].append(label)
        previous = label
    return [tokenizer.decode(run) for run in runs]
