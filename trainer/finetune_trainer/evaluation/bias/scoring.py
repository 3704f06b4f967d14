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
from finetune_trainer.data.augment.counterfactual import CATEGORIES, USER_CATEGORY, find_named_groups, swap_row_terms
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.data.row_types import PromptCompletion
from finetune_trainer.evaluation.bias.analysis import LogLikelihood, compute_preference, judge_bias
from finetune_trainer.evaluation.bias.sentence_pairs import SentencePair
from finetune_trainer.evaluation.findings import BiasPreferences
from finetune_trainer.evaluation.prompts import select_evenly, split_last_answer
from finetune_trainer.modeling.batch_limits import MAX_LOSS_TOKENS
from finetune_trainer.modeling.generation import CompletionDecoder
from finetune_trainer.modeling.likelihood import LabeledTokens, compute_losses, measure_base_and_tuned
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.records.evaluation import BiasResult

_MAX_ROWS = 5000
"""Training rows whose groups are counted, and validation rows whose terms are swapped, evenly spaced over all rows."""


@dataclass(frozen=True)
class TextPairs:
    """Pairs of texts of one kind and category."""

    kind: Literal["swap", "pair"]
    category: str
    first: list[LabeledTokens]
    second: list[LabeledTokens]
    too_long_count: int = 0
    """Number of pairs that were skipped because a text exceeds the positions of the model."""


@dataclass(frozen=True)
class BiasScorer:
    """Measures how fine-tuning changed preferences between groups of people."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    settings: BiasEvaluation
    heartbeat: Callable[[], None]
    max_batch_tokens: int = MAX_LOSS_TOKENS

    def measure_bias(
        self, pairs: Sequence[SentencePair], training_rows: datasets.Dataset, validation_rows: datasets.Dataset | None
    ) -> BiasResult:
        """Compare sentences with their counterparts, and validation rows with the same rows with swapped terms."""
        comparisons, notes = list(self._tokenize_pairs(pairs)), []
        if validation_rows is None:
            notes.append(
                "rows were not compared with the same rows about another group: there is no dataset.validation"
            )
        else:
            comparisons += self._tokenize_swaps(select_evenly(validation_rows, _MAX_ROWS))
        bias = judge_bias(
            [self._compute_preferences(text_pairs) for text_pairs in comparisons], self._count_groups(training_rows)
        )
        if dropped := sum(text_pairs.too_long_count for text_pairs in comparisons):
            notes.append(f"{dropped:,} comparisons were skipped: a text has more tokens than the model has positions")
        if len(training_rows) > _MAX_ROWS:
            notes.append(f"groups were counted in {_MAX_ROWS:,} of {len(training_rows):,} training rows")
        return bias.model_copy(update={"notes": [*bias.notes, *notes]})

    def _compute_preferences(self, text_pairs: TextPairs) -> BiasPreferences:
        base, tuned = measure_base_and_tuned(self.model, lambda: self._score_pairs(text_pairs))
        return BiasPreferences(text_pairs.kind, text_pairs.category, base, tuned)

    def _score_pairs(self, text_pairs: TextPairs) -> list[float]:
        first, second = (self._compute_likelihoods(texts) for texts in (text_pairs.first, text_pairs.second))
        return [
            compute_preference(first_likelihood, second_likelihood)
            for first_likelihood, second_likelihood in zip(first, second, strict=True)
        ]

    def _compute_likelihoods(self, texts: Sequence[LabeledTokens]) -> list[LogLikelihood]:
        row_losses = compute_losses(self.model, texts, self.heartbeat, self.max_batch_tokens)
        return [
            LogLikelihood(-loss, token_count)
            for loss, token_count in zip(row_losses.sums, row_losses.token_counts, strict=True)
        ]

    def _tokenize_pairs(self, pairs: Sequence[SentencePair]) -> Iterator[TextPairs]:
        for category in sorted({pair.category for pair in pairs}):
            category_pairs = [pair for pair in pairs if pair.category == category]
            token_pairs = [
                (self._tokenize_sentence(pair.stereotype), self._tokenize_sentence(pair.counterpart))
                for pair in category_pairs
            ]
            yield self._build_text_pairs("pair", category, token_pairs)

    def _tokenize_swaps(self, rows: datasets.Dataset) -> Iterator[TextPairs]:
        decoder = CompletionDecoder(self.tokenizer)
        rows_in_parts = filter(None, (split_last_answer(row["input_ids"], row["labels"]) for row in rows))
        texts = [
            PromptCompletion(self.tokenizer.decode(prompt), decoder.decode(answer).text)
            for prompt, answer in rows_in_parts
        ]
        for category in [*CATEGORIES, *([USER_CATEGORY] if self.settings.terms else [])]:
            swapped = [(text, swap_row_terms(text, category, self.settings.terms)) for text in texts]
            token_pairs = [
                (self._tokenize_row(text), self._tokenize_row(counterpart))
                for text, counterpart in swapped
                if isinstance(counterpart, PromptCompletion)
            ]
            yield self._build_text_pairs("swap", category, token_pairs)

    def _tokenize_sentence(self, text: str) -> LabeledTokens:
        """Tokenize a sentence that is scored completely, after a start token that makes its first token count."""
        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        ids = self._encode(text)
        return LabeledTokens([start, *ids], [IGNORE_INDEX, *ids])

    def _tokenize_row(self, row: PromptCompletion) -> LabeledTokens:
        """Tokenize a row whose answer is scored, given its prompt."""
        prompt, answer = self._encode(row.prompt), self._encode(row.completion)
        return LabeledTokens([*prompt, *answer], [*([IGNORE_INDEX] * len(prompt)), *answer])

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _count_groups(self, rows: datasets.Dataset) -> dict[str, dict[str, int]]:
        counts: Counter[tuple[str, str]] = Counter()
        for row in select_evenly(rows, _MAX_ROWS):
            ids = [token for column in row.values() if isinstance(column, list) for token in column if token >= 0]
            counts.update(find_named_groups(self.tokenizer.decode(ids), self.settings.terms))
        table: dict[str, dict[str, int]] = {}
        for (category, group), count in sorted(counts.items()):
            table.setdefault(category, {})[group] = count
        return table

    def _build_text_pairs(
        self, kind: Literal["swap", "pair"], category: str, token_pairs: Sequence[tuple[LabeledTokens, LabeledTokens]]
    ) -> TextPairs:
        """Select the pairs with tokens to score (an empty answer has none) and within the positions of the model."""
        scorable = [
            pair
            for pair in token_pairs
            if all(any(label != IGNORE_INDEX for label in text.labels[1:]) for text in pair)
        ]
        max_tokens = get_max_positions(self.model.get_base_model().config)
        fitting = [
            pair for pair in scorable if max_tokens is None or all(len(text.input_ids) <= max_tokens for text in pair)
        ]
        first, second = [first_text for first_text, _ in fitting], [second_text for _, second_text in fitting]
        return TextPairs(kind, category, first, second, len(scorable) - len(fitting))
