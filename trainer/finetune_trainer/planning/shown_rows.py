"""The first rows of a prepared dataset as text, for `finetune-trainer plan --show-rows`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.base import Model
from finetune_trainer.text import escape_invisible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune_trainer.data.preparation import PreparedData

TextMarks = tuple[str, str]
"""What is written before and after each supervised part of a text."""
QUOTE_MARKS: TextMarks = ("«", "»")
TERMINAL_MARKS: TextMarks = ("\x1b[7m", "\x1b[27m")
"""Reverse video, and its end (ECMA-48)."""
_ANSWER_NAMES = {"chosen_ids": "chosen", "rejected_ids": "rejected", "completion_ids": "answer"}
"""Names of the answers of a preference row by their column. The loss is computed on all of their tokens."""


class TextPart(Model):
    """Consecutive tokens as text, of which either all or none are supervised."""

    text: str
    supervised: bool


class ShownText(Model):
    """A token sequence of a row: the row itself, or the prompt with one of its answers."""

    name: str
    """`row`, `prompt`, `answer`, `chosen` or `rejected`."""
    tokens: int
    supervised_tokens: int
    parts: list[TextPart]


class ShownRow(Model):
    """A row as it is trained on."""

    location: str
    """Object and line of the row in the data."""
    desirable: bool | None = None
    """Label of the answer with method `kto`."""
    texts: list[ShownText]


def collect_rows(prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, count: int) -> list[ShownRow]:
    """Return the first `count` rows to train on, or fewer if there are not as many."""
    rows = zip(islice(prepared.dataset, count), prepared.locations, strict=False)
    return [
        ShownRow(
            location=str(location),
            desirable=row.get("label"),
            texts=[_build_text(name, ids, flags, tokenizer) for name, ids, flags in _iterate_sequences(row)],
        )
        for row, location in rows
    ]


def _iterate_sequences(row: Mapping[str, Any]) -> Iterator[tuple[str, list[int], list[bool]]]:
    """Yield the name, the tokens, and for each token whether it is supervised, of each sequence of a row."""
    if "labels" in row:
        from finetune_trainer.data.loss_masking import IGNORE_INDEX

        yield "row", row["input_ids"], [label != IGNORE_INDEX for label in row["labels"]]
        return
    prompt = row["prompt_ids"]
    if not any(column in row for column in _ANSWER_NAMES):
        yield "prompt", prompt, [False] * len(prompt)
    for column, name in _ANSWER_NAMES.items():
        if column in row:
            yield name, prompt + row[column], [False] * len(prompt) + [True] * len(row[column])


def _build_text(name: str, ids: list[int], flags: list[bool], tokenizer: PreTrainedTokenizerBase) -> ShownText:
    parts = [TextPart(text=text, supervised=flag) for text, flag in _decode_parts(ids, flags, tokenizer)]
    return ShownText(name=name, tokens=len(ids), supervised_tokens=sum(flags), parts=parts)


def _decode_parts(ids: list[int], flags: list[bool], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bool]]:
    """Yield the text of consecutive tokens with the same flag, with control tokens.

    A part is what the text gains by its tokens: decoders remove the space at the beginning of a text, but not within.
    """
    start_char = end = 0
    for flag, group in groupby(flags):
        end += len(list(group))
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # The bytes of a character may be divided between two parts. It is complete in the second one.
        end_char = len(text) if end == len(ids) else len(text.rstrip("\ufffd"))
        yield text[start_char:end_char], flag
        start_char = end_char


def format_rows(rows: Iterable[ShownRow], marks: TextMarks) -> str:
    """Return the rows as text, with `marks` around the supervised parts and the codes of invisible characters."""
    return "\n\n".join(line for number, row in enumerate(rows, 1) for line in _format_row(number, row, marks))


def _format_row(number: int, row: ShownRow, marks: TextMarks) -> Iterator[str]:
    label = "" if row.desirable is None else f", label {str(row.desirable).lower()}"
    for text in row.texts:
        name = f", {text.name}" if len(row.texts) > 1 else ""
        counts = f"{text.tokens:,} tokens, of which {text.supervised_tokens:,} are supervised"
        parts = "".join(_mark(part, marks) for part in text.parts).removesuffix("\n")  # a blank line follows
        yield f"row {number}{name}: {escape_invisible(row.location)}{label}, {counts}\n{parts}"


def _mark(part: TextPart, marks: TextMarks) -> str:
    text = escape_invisible(part.text)
    return text.join(marks) if part.supervised else text
