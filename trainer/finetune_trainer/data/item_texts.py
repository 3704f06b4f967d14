"""The texts in the columns that graders read, cleaned like the rows, so that both compare equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetune_trainer.contract import Preparation
from finetune_trainer.data.cleaning import clean_text
from finetune_trainer.data.pii import redact_pii


def map_item_texts(item: Mapping[str, Any], preparation: Preparation) -> dict[str, Any]:
    """Return the columns with their texts normalized and redacted, as `dataset.preparation` says."""

    def prepare(text: str) -> str:
        cleaned = clean_text(text) if preparation.normalize_text else text
        return redact_pii(cleaned, preparation.redact) if preparation.redact else cleaned

    return {name: _map_texts(value, prepare) for name, value in item.items()}


def _map_texts(value: object, prepare: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return prepare(value)
    if isinstance(value, list):
        return [_map_texts(each, prepare) for each in value]
    if isinstance(value, dict):
        return {key: _map_texts(each, prepare) for key, each in value.items()}
    return value
