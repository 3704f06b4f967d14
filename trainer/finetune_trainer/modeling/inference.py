"""Questions out of rows, and a model's answers to them. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

import datasets
import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.data.end_of_turn import get_stop_token_ids
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.modeling.generation_config import build_greedy_config, ignore_model_config
from finetune_trainer.modeling.positions import get_max_positions

_BATCH_SIZE = 8


@dataclass(frozen=True)
class EvaluationPrompt:
    """What a model is shown, as tokens, and what the data answers."""

    prompt: list[int]
    reference: str


class CompletionDecoder:
    """Turns the tokens of an answer into text, up to the first token that ends it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._end_ids = frozenset(get_stop_token_ids(tokenizer) if end_ids is None else end_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The answer without its end, special tokens and surrounding blanks."""
        # The end is cut off by its id: skip_special_tokens keeps a token that is not flagged as special.
        answer_ids = list(takewhile(lambda token: token not in self._end_ids, ids))
        return str(self._tokenizer.decode(answer_ids, skip_special_tokens=True)).strip()


def extract_prompt(
    input_ids: Sequence[int], labels: Sequence[int], decoder: CompletionDecoder
) -> EvaluationPrompt | None:
    """A row's last answer and all that comes before it; nothing of a row that is all answer."""
    supervised = [index for index, label in enumerate(labels) if label != IGNORE_INDEX]
    if not supervised:
        return None
    start = supervised[-1]
    while start > 0 and labels[start - 1] != IGNORE_INDEX:
        start -= 1
    if start <= 1:  # no prompt: plain text, or a loss on all tokens
        return None
    return EvaluationPrompt(list(input_ids[:start]), decoder.decode(input_ids[start : supervised[-1] + 1]))


def select_evenly(rows: datasets.Dataset, max_rows: int) -> datasets.Dataset:
    """At most `most` rows, evenly spread over all."""
    if len(rows) <= max_rows:
        return rows
    return rows.select(np.linspace(0, len(rows) - 1, max_rows).round().astype(int))


def extract_prompts(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_rows: int
) -> list[EvaluationPrompt]:
    """Rows with a prompt and an answer, as questions, of at most `most` rows, evenly spread over all."""
    decoder = CompletionDecoder(tokenizer)
    prompts = (extract_prompt(row["input_ids"], row["labels"], decoder) for row in select_evenly(rows, max_rows))
    return [prompt for prompt in prompts if prompt]


@dataclass(frozen=True)
class TextGenerator:
    """Asks a model, the likeliest token each time, so that the same question always gets the same answer.

    Nothing in the model's own generation config changes that. An answer ends before the model runs out of positions;
    a prompt that leaves no position is answered with an empty text.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    heartbeat: Callable[[], None] = lambda: None

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """One per prompt, in their order."""
        self.model.eval()
        completions, config = [""] * len(prompts), build_greedy_config(self.model, self.tokenizer)
        decoder = CompletionDecoder(self.tokenizer, config.eos_token_id or ())
        for token_limit, batch in self._batch_prompts(prompts):
            config.max_new_tokens = token_limit
            for index, ids in zip(
                batch, self._generate_batch([prompts[index] for index in batch], config), strict=True
            ):
                completions[index] = decoder.decode(ids)
            self.heartbeat()
        return completions

    def _batch_prompts(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
        """Indices of prompts that have room for the same number of tokens, of like length together."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for token_limit, group in groupby(order, key=lambda index: self._limit_new_tokens(prompts[index])):
            indices = list(group) if token_limit > 0 else []
            for start in range(0, len(indices), _BATCH_SIZE):
                yield token_limit, indices[start : start + _BATCH_SIZE]

    def _limit_new_tokens(self, prompt: Sequence[int]) -> int:
        positions = get_max_positions(self.model.config)
        return self.max_new_tokens if positions is None else min(self.max_new_tokens, positions - len(prompt))

    def _generate_batch(self, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
        longest = max(map(len, prompts))
        pad_id = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        attention_mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = self.model.device
        with torch.no_grad(), ignore_model_config(self.model):
            output = self.model.generate(
                input_ids=ids.to(device), attention_mask=attention_mask.to(device), generation_config=config
            )
        completions: list[list[int]] = output[:, longest:].tolist()
        return completions
