"""Validation rows as prompts in tokens, with the answers of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.end_of_turn import get_stop_token_ids
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.data.row_archive import ArchivedRow
from finetune_trainer.modeling.generation import Answer, CompletionDecoder
from finetune_trainer.records.evaluation import GeneratedAnswer

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from finetune_trainer.data.row_texts import Turn


@dataclass(frozen=True)
class EvaluationRow:
    """A row to answer: its prompt in tokens, and the answer of the data."""

    number: int
    """Number of the row in its split, counted from 0."""
    digest: str
    turns: Sequence[Turn]
    """Turns of the prompt."""
    prompt: Sequence[int]
    answer_tokens: int
    """Tokens of the answer, with its reasoning and what the chat template writes around it."""
    reference: str
    """The answer that generated answers are compared with: without reasoning and text of the chat template."""
    reasoning: str = ""
    item: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the data that graders read, by name."""


@dataclass(frozen=True)
class TemplateFrame:
    """Text that the chat template writes before and after an answer, in ordinary text instead of special tokens."""

    before: str = ""
    after: str = ""

    def remove_from(self, answer: str) -> str:
        """Return the answer without the frame."""
        return answer.removeprefix(self.before).removesuffix(self.after).strip()


def select_rows(
    rows: datasets.Dataset, texts: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_rows: int
) -> tuple[list[EvaluationRow], TemplateFrame]:
    """Return at most `max_rows` rows, evenly spaced over all rows, and what the chat template writes around answers.

    `texts` has an `ArchivedRow` for each row of `rows`. Rows without a prompt are skipped, and so are those whose
    answer truncation has cut off.
    """
    if "labels" not in rows.column_names:
        return _select_prompts(rows, texts, max_rows), TemplateFrame()
    decoder, stop_texts = CompletionDecoder(tokenizer), _list_stop_texts(tokenizer)
    selected, rendered = [], []
    for number in select_row_numbers(len(rows), max_rows):
        archived = ArchivedRow.from_columns(texts[number])
        input_ids, labels = rows[number]["input_ids"], rows[number]["labels"]
        start = _find_answer_start(labels, archived.answer_start)
        if not archived.turns or not start:
            continue
        prompt, answer_ids = input_ids[:start], input_ids[start : _find_end(labels)]
        answer = decoder.decode(answer_ids, prompt)
        reference = _remove_end(
            answer.final if _is_other_call_format(archived, answer) else archived.answer, stop_texts
        )
        rendered.append((reference, answer.final))
        selected.append(
            EvaluationRow(
                number,
                archived.digest,
                archived.turns,
                prompt,
                len(answer_ids),
                reference,
                archived.reasoning,
                archived.item,
            )
        )
    return selected, _find_frame(rendered)


def _select_prompts(rows: datasets.Dataset, texts: datasets.Dataset, max_rows: int) -> list[EvaluationRow]:
    """Return the rows of a method that generates answers: their answers in the data are not rendered."""
    archived_rows = {
        number: ArchivedRow.from_columns(texts[number]) for number in select_row_numbers(len(rows), max_rows)
    }
    return [
        EvaluationRow(
            number, row.digest, row.turns, rows[number]["prompt_ids"], 0, row.reference or "", row.reasoning, row.item
        )
        for number, row in archived_rows.items()
    ]


def list_references(texts: datasets.Dataset, max_rows: int) -> list[str]:
    """Return the answers of at most `max_rows` rows, evenly spaced over all rows, of those that have a prompt."""
    rows = [ArchivedRow.from_columns(texts[number]) for number in select_row_numbers(len(texts), max_rows)]
    return [row.answer for row in rows if row.turns]


def split_last_answer(input_ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Split a tokenized row into the prompt and its last answer. Return None if nothing precedes the answer."""
    start = _find_last_run(labels)
    if start <= 1:  # no prompt: plain text, or a loss on all tokens
        return None
    return list(input_ids[:start]), list(input_ids[start : _find_end(labels)])


def list_cut_answers(rows: Sequence[EvaluationRow], cut_count: int, max_new_tokens: int) -> list[str]:
    """Return a message if answers are too long: `cut_count` answers of the tuned model, or those of the data."""
    longest = max((row.answer_tokens for row in rows), default=0)
    long_count = sum(row.answer_tokens > max_new_tokens for row in rows)
    cut = f"{cut_count} of {len(rows)} answers of the tuned model were cut at {max_new_tokens} tokens"
    if long_count:
        return [
            f"complete answers: {cut}, and {long_count} of {len(rows)} reference answers have more tokens, the longest "
            f"{longest}; this lowers the scores, so set evaluation.maxNewTokens to a higher value"
        ]
    if cut_count:
        return [
            f"complete answers: {cut}, which lowers their scores; the longest reference answer has {longest}, so the "
            "model has not learned to end them: see the samples"
        ]
    return []


def list_unfinished_reasoning(answers: Sequence[GeneratedAnswer], max_new_tokens: int) -> list[str]:
    """Return a message if answers of the base model were cut within their reasoning, so that they have no text."""
    count = sum(answer.is_cut and bool(answer.reasoning) and not answer.text for answer in answers)
    if not count:
        return []
    return [
        f"answers of the base model: {count} of {len(answers)} were cut at {max_new_tokens} tokens within their "
        "reasoning and count as empty, so the base model may be better than its scores; set evaluation.maxNewTokens "
        "to a higher value"
    ]


def select_row_numbers(count: int, max_rows: int) -> list[int]:
    """Return the numbers of at most `max_rows` of `count` rows, evenly spaced over all rows."""
    import numpy as np

    if count <= max_rows:
        return list(range(count))
    numbers: list[int] = np.linspace(0, count - 1, max_rows).round().astype(int).tolist()
    return numbers


def select_evenly(rows: datasets.Dataset, max_rows: int) -> datasets.Dataset:
    """Select at most `max_rows` rows, evenly spaced over all rows."""
    return rows if len(rows) <= max_rows else rows.select(select_row_numbers(len(rows), max_rows))


def _find_end(labels: Sequence[int]) -> int:
    """Return the index after the last supervised token, or 0 without one."""
    return next((index + 1 for index in reversed(range(len(labels))) if labels[index] != IGNORE_INDEX), 0)


def _find_last_run(labels: Sequence[int]) -> int:
    """Return the index of the first of the supervised tokens at the end of the supervised tokens."""
    start = max(_find_end(labels) - 1, 0)
    while start > 0 and labels[start - 1] != IGNORE_INDEX:
        start -= 1
    return start


def _find_answer_start(labels: Sequence[int], last_answer_start: int) -> int:
    """Return the index of the first token of the last supervised answer, or 0 if truncation has cut it off.

    The last answer may be unsupervised. Then the one before is found by its labels, which with a loss on all tokens do
    not tell an answer from the text before it.
    """
    if last_answer_start >= len(labels):
        return 0
    if labels[last_answer_start] != IGNORE_INDEX:
        return last_answer_start
    start = _find_last_run(labels)
    return start if start > 1 else 0


def _is_other_call_format(archived: ArchivedRow, answer: Answer) -> bool:
    """Return whether the chat template writes tool calls in a format that `parse_answer` does not read: then the
    rendered calls are compared as text."""
    return archived.has_calls and answer.final != archived.answer


def _list_stop_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.convert_ids_to_tokens(id_)) for id_ in get_stop_token_ids(tokenizer)]


def _remove_end(reference: str, stop_texts: Iterable[str]) -> str:
    """Remove the text of a token that ends the answer, which some data has in its completions."""
    for stop_text in stop_texts:
        reference = reference.removesuffix(stop_text).rstrip()
    return reference


def _find_frame(rendered: Iterable[tuple[str, str]]) -> TemplateFrame:
    """Return the text that surrounds most references in their rendered answers."""
    frames = Counter(
        (before, after)
        for before, reference, after in (answer.partition(reference) for reference, answer in rendered if reference)
        if reference
    )
    return TemplateFrame(*frames.most_common(1)[0][0]) if frames else TemplateFrame()
