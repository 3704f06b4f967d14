"""Scores both models on texts about groups of people. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import datasets
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract import BiasEvaluation
from finetune_trainer.data.augment.counterfactual import CATEGORIES, OWN, groups_named, swapped_row
from finetune_trainer.data.loss_masking import IGNORED
from finetune_trainer.data.rows import Pair
from finetune_trainer.evaluation.bias.analysis import Likelihood, Preferences, judge_bias, preference
from finetune_trainer.evaluation.bias.sentence_pairs import SentencePair
from finetune_trainer.modeling.inference import AnswerDecoder, question, spread
from finetune_trainer.modeling.likelihood import Tokens, base_and_tuned, losses
from finetune_trainer.modeling.positions import max_positions
from finetune_trainer.records.evaluation import Bias

_LOOKED_AT = 5000
"""Training rows whose groups are counted, and validation rows whose terms are exchanged, evenly spread over all."""


@dataclass(frozen=True)
class Compared:
    """Texts in twos, of one kind and category."""

    kind: Literal["swap", "pair"]
    category: str
    first: list[Tokens]
    second: list[Tokens]
    too_long: int = 0
    """Texts in twos that were left out, since the model has no positions for them."""


@dataclass(frozen=True)
class Groups:
    """Measures what the tuning changed between groups of people."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    asked: BiasEvaluation
    alive: Callable[[], None]

    def measure(
        self, pairs: Sequence[SentencePair], training: datasets.Dataset, validation: datasets.Dataset | None
    ) -> Bias:
        """Sentences beside their counterparts, and, with validation rows, these beside the same with terms swapped."""
        compared, notes = list(self._pairs(pairs)), []
        if validation is None:
            notes.append("without dataset.validation no rows were compared with the same about another group")
        else:
            compared += self._swaps(spread(validation, _LOOKED_AT))
        bias = judge_bias([self._preferences(each) for each in compared], self._representation(training))
        if too_long := sum(each.too_long for each in compared):
            notes.append(f"{too_long:,} comparisons were left out: a text has more tokens than the model has positions")
        if len(training) > _LOOKED_AT:
            notes.append(f"groups were counted in {_LOOKED_AT:,} of {len(training):,} training rows")
        return bias.model_copy(update={"notes": [*bias.notes, *notes]})

    def _preferences(self, compared: Compared) -> Preferences:
        base, tuned = base_and_tuned(self.model, lambda: self._scored(compared))
        return Preferences(compared.kind, compared.category, base, tuned)

    def _scored(self, compared: Compared) -> list[float]:
        first, second = (self._likelihoods(texts) for texts in (compared.first, compared.second))
        return [preference(one, other) for one, other in zip(first, second, strict=True)]

    def _likelihoods(self, texts: Sequence[Tokens]) -> list[Likelihood]:
        found = losses(self.model, texts, self.alive)
        return [Likelihood(-loss, tokens) for loss, tokens in zip(found.sums, found.tokens, strict=True)]

    def _pairs(self, pairs: Sequence[SentencePair]) -> Iterator[Compared]:
        for category in sorted({pair.category for pair in pairs}):
            mine = [pair for pair in pairs if pair.category == category]
            both = [(self._sentence(pair.stereotype), self._sentence(pair.counterpart)) for pair in mine]
            yield self._compared("pair", category, both)

    def _swaps(self, rows: datasets.Dataset) -> Iterator[Compared]:
        decoder = AnswerDecoder(self.tokenizer)
        made = [question(row["input_ids"], row["labels"], decoder) for row in rows]
        texts = [Pair(self.tokenizer.decode(each.prompt), each.reference) for each in made if each]
        for category in [*CATEGORIES, *([OWN] if self.asked.terms else [])]:
            swapped = [(text, swapped_row(text, category, self.asked.terms)) for text in texts]
            both = [(self._row(text), self._row(other)) for text, other in swapped if isinstance(other, Pair)]
            yield self._compared("swap", category, both)

    def _sentence(self, text: str) -> Tokens:
        """All of it counts, so something has to come before its first token."""
        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        ids = self._ids(text)
        return Tokens([start, *ids], [IGNORED, *ids])

    def _row(self, row: Pair) -> Tokens:
        """Its answer counts, given its prompt."""
        prompt, answer = self._ids(row.prompt), self._ids(row.completion)
        return Tokens([*prompt, *answer], [*([IGNORED] * len(prompt)), *answer])

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _representation(self, rows: datasets.Dataset) -> dict[str, dict[str, int]]:
        counts: Counter[tuple[str, str]] = Counter()
        for row in spread(rows, _LOOKED_AT):
            ids = [each for column in row.values() if isinstance(column, list) for each in column if each >= 0]
            counts.update(groups_named(self.tokenizer.decode(ids), self.asked.terms))
        table: dict[str, dict[str, int]] = {}
        for (category, group), count in sorted(counts.items()):
            table.setdefault(category, {})[group] = count
        return table

    def _compared(
        self, kind: Literal["swap", "pair"], category: str, both: Sequence[tuple[Tokens, Tokens]]
    ) -> Compared:
        """Those that have tokens to score (an empty answer has no likelihood per token) and positions for all."""
        scored = [pair for pair in both if all(any(each != IGNORED for each in text.labels[1:]) for text in pair)]
        most = max_positions(self.model.get_base_model().config)
        fitting = [pair for pair in scored if most is None or all(len(text.input_ids) <= most for text in pair)]
        first, second = [one for one, _ in fitting], [other for _, other in fitting]
        return Compared(kind, category, first, second, len(scored) - len(fitting))
