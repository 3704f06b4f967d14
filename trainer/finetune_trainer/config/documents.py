"""Reads YAML files as kubectl does: YAML 1.2, in which `2e-4` is a number, and dates stay text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode

from finetune_trainer.config.manifest_text import read_manifest_text

_MAX_VALUES = 1_000_000
"""Far more than any manifest has."""


class DocumentError(Exception):
    """A file cannot be read or is not YAML. The message says why, as the rest of a sentence about the file."""


class _PlainConstructor(RoundTripConstructor):
    """Constructs plain values with their line numbers. Dates stay text, as for kubectl."""

    def construct_text(self, node: ScalarNode) -> str:
        """Return the scalar as it is written."""
        return str(node.value)


_PlainConstructor.add_constructor("tag:yaml.org,2002:timestamp", _PlainConstructor.construct_text)


def read_documents(path: Path) -> list[Any]:
    """Return the documents of a file with their line numbers, without empty ones. Raises `DocumentError`."""
    try:
        return parse_documents(read_manifest_text(path))
    except OSError as error:
        raise DocumentError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DocumentError("is not UTF-8 text") from error


def parse_documents(text: str) -> list[Any]:
    """Return the documents of a text with their line numbers, without empty ones. Raises `DocumentError`."""
    yaml = YAML(typ="rt")
    yaml.Constructor = _PlainConstructor
    try:
        documents = [document for document in yaml.load_all(text) if document is not None]
        sizes = dict[int, int]()
        count = sum(_count_values(document, sizes) for document in documents)
    except YAMLError as error:
        raise DocumentError(_describe_yaml_error(error)) from error
    except RecursionError:
        raise DocumentError("is nested too deeply") from None
    if count > _MAX_VALUES:
        raise DocumentError(f"has aliases (*NAME) that expand it to more than {_MAX_VALUES:,} values")
    return documents


def _count_values(value: object, sizes: dict[int, int]) -> int:
    """Return the number of values in a document with its aliases expanded, of which there may be exponentially many.

    `sizes` has the numbers of the mappings and lists that were counted. One that contains itself counts as 0 there,
    and is rejected by `to_plain`.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = 0
        items = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_count_values(item, sizes) for item in items)
    return sizes[id(value)]


def to_plain(document: object) -> object:
    """Return a document as plain values of JSON. Raises `DocumentError` for values that JSON does not have."""
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DocumentError(f"has a value that JSON does not have: {error}") from error
    except RecursionError:
        raise DocumentError("is nested too deeply") from None
    plain: object = json.loads(text)
    return plain


def _describe_yaml_error(error: YAMLError) -> str:
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"is not valid YAML: {error}"
    return f"is not valid YAML: {error.problem} (line {error.problem_mark.line + 1})"
