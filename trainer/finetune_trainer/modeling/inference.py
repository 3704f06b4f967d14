"""Questions out of rows, and a model's answers to them. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

import datasets
import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.data.end_of_turn import stop_ids
from finetune_trainer.data.loss_masking import IGNORED
from finetune_trainer.modeling.generation_config import greedy_config, only_given_config
from finetune_trainer.modeling.positions import max_positions

_BATCH = 8


@dataclass(frozen=True)
class Question:
    """What a model is shown, as tokens, and what the data answers."""

    prompt: list[int]
    reference: str


class AnswerDecoder:
    """Turns the tokens of an answer into text, up to the first token that ends it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._ends = frozenset(stop_ids(tokenizer) if end_ids is None else end_ids)

    def text(self, ids: Sequence[int]) -> str:
        """The answer without its end, special tokens and surrounding blanks."""
        # The end is cut off by its id: skip_special_tokens keeps a token that is not flagged as special.
        answer = list(takewhile(lambda token: token not in self._ends, ids))
        return str(self._tokenizer.decode(answer, skip_special_tokens=True)).strip()


def question(input_ids: Sequence[int], labels: Sequence[int], decoder: AnswerDecoder) -> Question | None:
    """A row's last answer and all that comes before it; nothing of a row that is all answer."""
    learnt = [index for index, label in enumerate(labels) if label != IGNORED]
    if not learnt:
        return None
    first = learnt[-1]
    while first > 0 and labels[first - 1] != IGNORED:
        first -= 1
    if first <= 1:  # no prompt: plain text, or a loss on all tokens
        return None
    return Question(list(input_ids[:first]), decoder.text(input_ids[first : learnt[-1] + 1]))


def spread(rows: datasets.Dataset, most: int) -> datasets.Dataset:
    """At most `most` rows, evenly spread over all."""
    if len(rows) <= most:
        return rows
    return rows.select(np.linspace(0, len(rows) - 1, most).round().astype(int))


def questions(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, most: int) -> list[Question]:
    """Rows with a prompt and an answer, as questions, of at most `most` rows, evenly spread over all."""
    decoder = AnswerDecoder(tokenizer)
    made = (question(row["input_ids"], row["labels"], decoder) for row in spread(rows, most))
    return [each for each in made if each]


@dataclass(frozen=True)
class Answerer:
    """Asks a model, the likeliest token each time, so that the same question always gets the same answer.

    Nothing in the model's own generation config changes that. An answer ends before the model runs out of positions;
    a prompt that leaves no position is answered with an empty text.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    alive: Callable[[], None] = lambda: None

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """One per prompt, in their order."""
        self.model.eval()
        made, config = [""] * len(prompts), greedy_config(self.model, self.tokenizer)
        decoder = AnswerDecoder(self.tokenizer, config.eos_token_id or ())
        for room, batch in self._batches(prompts):
            config.max_new_tokens = room
            for index, ids in zip(batch, self._generate([prompts[index] for index in batch], config), strict=True):
                made[index] = decoder.text(ids)
            self.alive()
        return made

    def _batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
        """Indices of prompts that have room for the same number of tokens, of like length together."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for room, group in groupby(order, key=lambda index: self._room(prompts[index])):
            same = list(group) if room > 0 else []
            for start in range(0, len(same), _BATCH):
                yield room, same[start : start + _BATCH]

    def _room(self, prompt: Sequence[int]) -> int:
        positions = max_positions(self.model.config)
        return self.max_new_tokens if positions is None else min(self.max_new_tokens, positions - len(prompt))

    def _generate(self, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = self.model.device
        with torch.no_grad(), only_given_config(self.model):
            output = self.model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
        answers: list[list[int]] = output[:, longest:].tolist()
        return answers
