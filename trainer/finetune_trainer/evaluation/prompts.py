"""Takes prompts and reference answers from tokenized rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.modeling.generation import Answer, CompletionDecoder

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt in tokens, and the answer to it in the data."""

    prompt: list[int]
    answer: Answer

    @property
    def reference(self) -> str:
        """The text that metrics compare answers with: without reasoning and markers of the chat template."""
        return self.answer.final


def extract_prompt(
    input_ids: Sequence[int], labels: Sequence[int], decoder: CompletionDecoder
) -> EvaluationPrompt | None:
    """Split a row before its last answer. Return None if nothing precedes the answer."""
    supervised = [index for index, label in enumerate(labels) if label != IGNORE_INDEX]
    if not supervised:
        return None
    start = supervised[-1]
    while start > 0 and labels[start - 1] != IGNORE_INDEX:
        start -= 1
    if start <= 1:  # no prompt: plain text, or a loss on all tokens
        return None
    return EvaluationPrompt(list(input_ids[:start]), decoder.decode(input_ids[start : supervised[-1] + 1]))


def extract_prompts(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_rows: int
) -> list[EvaluationPrompt]:
    """Return the prompts of at most `max_rows` rows, evenly spaced over all rows. Rows without a prompt are skipped."""
    decoder = CompletionDecoder(tokenizer)
    prompts = (extract_prompt(row["input_ids"], row["labels"], decoder) for row in select_evenly(rows, max_rows))
    return [prompt for prompt in prompts if prompt]


def list_cut_answers(references: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> list[str]:
    """Return a message if some reference answers have more tokens than a generated answer can have."""
    token_counts = [len(tokenizer(reference, add_special_tokens=False)["input_ids"]) for reference in references]
    long_count = sum(count > max_new_tokens for count in token_counts)
    if not long_count:
        return []
    return [
        f"complete answers: {long_count} of {len(references)} reference answers have more than {max_new_tokens} tokens "
        f"(evaluation.maxNewTokens), the longest {max(token_counts)}; answers are cut at this length, which lowers "
        "their scores, so raise evaluation.maxNewTokens"
    ]


def select_evenly(rows: datasets.Dataset, max_rows: int) -> datasets.Dataset:
    """Select at most `max_rows` rows, evenly spaced over all rows."""
    import numpy as np

    if len(rows) <= max_rows:
        return rows
    return rows.select(np.linspace(0, len(rows) - 1, max_rows).round().astype(int))
