"""Rows with images, video or audio are invalid: the trainer trains on text only."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_trainer.data.conversations import parse_turns
from finetune_trainer.data.row_columns import RowColumns, list_unused_columns
from finetune_trainer.data.row_types import RowError

TEXT_ROW = {"prompt": "What is this?", "completion": "A cat."}


def list_unused(media: dict[str, Any]) -> list[str]:
    columns = RowColumns(media | TEXT_ROW)
    for name in TEXT_ROW:
        columns.require(name)
    return list_unused_columns(columns, "promptCompletion", [], is_detected=False)


@pytest.mark.parametrize(
    "media", [{"image": "cat.png"}, {"images": ["cat.png"]}, {"video": {"bytes": "0"}}, {"audio": "a.wav"}], ids=str
)
def test_media_filled_column_is_named(media: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=f"has '{next(iter(media))}'; only text can be trained on"):
        list_unused(media)


@pytest.mark.parametrize("media", [{}, {"image": None}, {"images": []}, {"audio": ""}, {"imageless": "x"}], ids=str)
def test_media_empty_column_is_accepted(media: dict[str, Any]) -> None:
    assert list_unused(media) == (["imageless"] if "imageless" in media else [])


def parse_user_turn(**keys: Any) -> dict[str, str]:
    answer = {"role": "assistant", "content": "A cat."}
    return parse_turns(RowColumns({}), "messages", [{"role": "user", "content": "Hi", **keys}, answer]).messages[0]


@pytest.mark.parametrize("empty", [{"tool_calls": []}, {"annotations": []}, {"name": ""}, {"audio": None}], ids=str)
def test_parse_turns_empty_key_is_ignored(empty: dict[str, Any]) -> None:
    assert parse_user_turn(**empty) == {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("filled", [{"tool_calls": [1]}, {"refusal": "x"}, {"images": ["cat.png"]}], ids=str)
def test_parse_turns_filled_key_is_refused(filled: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=f"found also '{next(iter(filled))}'"):
        parse_user_turn(**filled)


def test_parse_turns_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " this?", "image_url": None}]
    assert parse_user_turn(content=parts)["content"] == "What is this?"


@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": "a", "cache": {"x": 1}}, "a"], ids=str)
def test_parse_turns_other_part_is_refused(part: object) -> None:
    with pytest.raises(RowError, match=r"messages\[0\].content to be text, found a list"):
        parse_user_turn(content=[part])


def test_parse_turns_image_part_is_named() -> None:
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "cat.png"}}]
    with pytest.raises(RowError, match=r"messages\[0\].content has parts of type image_url; only text"):
        parse_turns(
            RowColumns({}),
            "messages",
            [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}],
        )
