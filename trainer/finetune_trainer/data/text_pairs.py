"""Pairs of texts that contain their prompt: the beginning that both texts have in common."""

from __future__ import annotations

import re
from dataclasses import dataclass

from finetune_trainer.data.conversations import build_turn, join_chats, require_nonblank_text
from finetune_trainer.data.row_types import Chat, RowError

_ANSWER_LABEL = "\n\nAssistant:"
_SPEAKER_PATTERN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
"""Start of a turn in dialogues that are written as text, as in Anthropic's HH-RLHF."""
_SPEAKER_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class TextPair:
    """A prompt, as text or as turns, and two answers."""

    prompt: str | Chat
    chosen: str
    rejected: str


def split_text_pair(chosen: str, rejected: str) -> TextPair:
    """Split two texts into their common prompt and two answers. Raises `RowError`.

    The prompt of a dialogue of `Human:` and `Assistant:` is its turns before the first answer that differs. The prompt
    of other texts ends after the last line, or if there is none the last word, that both texts have in common.
    """
    chosen, rejected = chosen.lstrip(), rejected.lstrip()
    beginning = _find_common_beginning(chosen, rejected)
    if beginning.startswith("Human:") and _ANSWER_LABEL in beginning:
        return _split_dialogues(chosen, rejected, beginning.rfind(_ANSWER_LABEL) + len(_ANSWER_LABEL))
    end = max(beginning.rfind("\n"), 0 if "\n" in beginning else beginning.rfind(" ")) + 1
    if not beginning[:end].strip():
        raise RowError("expected 'prompt', or texts with a common beginning, found texts without one")
    answers = [require_nonblank_text("the text after the common beginning", text[end:]) for text in (chosen, rejected)]
    return TextPair(beginning[:end], *answers)


def _find_common_beginning(first: str, second: str) -> str:
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))]


def _split_dialogues(chosen: str, rejected: str, end: int) -> TextPair:
    answers = [_require_one_answer(text[end:]) for text in (chosen, rejected)]
    return TextPair(_parse_dialogue(chosen[: end - len(_ANSWER_LABEL)]), *answers)


def _require_one_answer(text: str) -> str:
    if _SPEAKER_PATTERN.search(text):
        raise RowError(
            "expected the texts to differ only in the last answer, found further turns after the first difference; "
            "remove such rows, or set dataset.preparation.maxInvalidFraction"
        )
    return require_nonblank_text("the last turn of Assistant", text).strip()


def _parse_dialogue(text: str) -> Chat:
    _, *parts = _SPEAKER_PATTERN.split(text)
    turns = Chat([])
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        turn_text = require_nonblank_text(f"the turn of {speaker}", content, "a message").strip()
        turns = join_chats(turns, build_turn(_SPEAKER_ROLES[speaker], turn_text))
    return turns
