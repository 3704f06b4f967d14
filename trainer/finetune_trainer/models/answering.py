"""Questions out of rows, and a model's answers to them. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.data.labels import IGNORED, stop_ids

_BATCH = 8


@dataclass(frozen=True)
class Question:
    """What a model is shown, as tokens, and what the data answers."""

    prompt: list[int]
    reference: str


def question(input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Question | None:
    """A row's last answer and all that comes before it; nothing of a row that is all answer."""
    learnt = [index for index, label in enumerate(labels) if label != IGNORED]
    if not learnt:
        return None
    first = learnt[-1]
    while first > 0 and labels[first - 1] != IGNORED:
        first -= 1
    if first <= 1:  # no prompt: plain text, or a loss on all tokens
        return None
    reference = tokenizer.decode(list(input_ids[first : learnt[-1] + 1]), skip_special_tokens=True)
    return Question(list(input_ids[:first]), str(reference).strip())


def spread(rows: datasets.Dataset, most: int) -> datasets.Dataset:
    """At most `most` rows, evenly spread over all."""
    if len(rows) <= most:
        return rows
    return rows.select(np.linspace(0, len(rows) - 1, most).round().astype(int))


def questions(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, most: int) -> list[Question]:
    """Rows with a prompt and an answer, as questions, of at most `most` rows, evenly spread over all."""
    made = (question(row["input_ids"], row["labels"], tokenizer) for row in spread(rows, most))
    return [each for each in made if each]


@dataclass(frozen=True)
class Answerer:
    """Asks a model, the likeliest token each time, so that the same question always gets the same answer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    alive: Callable[[], None] = lambda: None

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """One per prompt, in their order."""
        self.model.eval()
        made, how = [""] * len(prompts), self._how()
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            for index, answer in zip(batch, self._batch([prompts[index] for index in batch], how), strict=True):
                made[index] = answer
            self.alive()
        return made

    def _batch(self, prompts: Sequence[Sequence[int]], how: GenerationConfig) -> list[str]:
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = self.model.device
        with torch.no_grad():
            output = self.model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=how
            )
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in output[:, longest:]]

    def _how(self) -> GenerationConfig:
        # A config of our own: the model's may ask for sampling, of which the arguments would then be left over.
        own = self.model.generation_config.eos_token_id
        stops = {*stop_ids(self.tokenizer), *([] if own is None else own if isinstance(own, list) else [own])}
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=sorted(stops),
            pad_token_id=self.tokenizer.pad_token_id,
        )
