"""Paths to values of a row and its answer, such as `{{item.total}}`. There is no template language: a path is all of a
value, and any other text is a literal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from finetune_trainer.contract.graders import PATH_PATTERN
from finetune_trainer.graders.base import AnswerProblem, DataProblem, GradedAnswer

_PATH = re.compile(PATH_PATTERN)


def resolve_value(value: str, answer: GradedAnswer) -> object:
    """Return what a path refers to, or the text itself.

    Raises `DataProblem` if the row lacks it, and `AnswerProblem` if the answer does.
    """
    if not _PATH.match(value):
        return value
    path = value.strip("{} ")
    source, _, rest = path.partition(".")
    if source == "item":
        return _resolve_item(path, answer.item, rest)
    if source == "reference":
        return _resolve_reference(path, answer.reference, rest)
    return _resolve_answer(path, answer.text, rest)


def resolve_text(value: str, answer: GradedAnswer) -> str:
    """Return what a path refers to as text: of a value that is no text, its JSON. Raises as `resolve_value`."""
    resolved = resolve_value(value, answer)
    return resolved if isinstance(resolved, str) else json.dumps(resolved, ensure_ascii=False, sort_keys=True)


def load_json(text: str) -> object:
    """Return the value of a JSON text. Raises `ValueError` for other texts, NaN, and more than 1024 levels."""
    return orjson.loads(text)


def _resolve_item(path: str, item: Mapping[str, Any], fields: str) -> object:
    try:
        value = _get_field(item, fields)
    except LookupError as error:
        raise DataProblem(f"the row has no field {path}") from error
    if value is None or value == "":  # an empty cell of a table
        raise DataProblem(f"{path} of the row is empty")
    return value


def _resolve_reference(path: str, reference: str | None, rest: str) -> object:
    if reference is None:
        raise DataProblem("the row has no answer of the data")
    if rest == "output_text":
        return reference
    try:
        return _get_field(load_json(reference), rest.removeprefix("output_json."))
    except ValueError as error:
        raise DataProblem(f"the answer of the data is not JSON, so there is no {path}") from error
    except LookupError as error:
        raise DataProblem(f"the answer of the data has no {path}") from error


def _resolve_answer(path: str, text: str, rest: str) -> object:
    if rest == "output_text":
        return text
    try:
        return _get_field(load_json(text), rest.removeprefix("output_json."))
    except ValueError as error:
        raise AnswerProblem("the answer is not JSON") from error
    except LookupError as error:
        raise AnswerProblem(f"the answer has no {path}") from error


def _get_field(value: object, fields: str) -> object:
    """Return the value at a path of keys and list indices. Raises `LookupError`."""
    for name in fields.split("."):
        if isinstance(value, Mapping):
            value = value[name]
        elif isinstance(value, list) and name.isdecimal():
            value = value[int(name)]
        else:
            raise LookupError(name)
    return value
