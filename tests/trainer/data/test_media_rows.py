"""Rows with images, video or audio are invalid: the trainer trains on text only."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_trainer.data.conversations import parse_turns
from finetune_trainer.data.formats import reject_media
from finetune_trainer.data.row_types import RowError

TEXT_ROW = {"prompt": "What is this?", "completion": "A cat."}


@pytest.mark.parametrize(
    "media", [{"image": "cat.png"}, {"images": ["cat.png"]}, {"video": {"bytes": "0"}}, {"audio": "a.wav"}], ids=str
)
def test_reject_media_filled_column_is_named(media: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=f"has '{next(iter(media))}'; only text can be trained on"):
        reject_media({**TEXT_ROW, **media})


@pytest.mark.parametrize("media", [{}, {"image": None}, {"images": []}, {"audio": ""}, {"imageless": "x"}], ids=str)
def test_reject_media_empty_column_is_accepted(media: dict[str, Any]) -> None:
    reject_media({**TEXT_ROW, **media})


def test_parse_turns_image_part_is_named() -> None:
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "cat.png"}}]
    with pytest.raises(RowError, match=r"messages\[0\].content has parts of type image_url; only text"):
        parse_turns("messages", [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}])
