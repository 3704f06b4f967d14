"""Search for the texts of control tokens in the texts of a conversation.

A tokenizer does not distinguish between a control token that the chat template writes and one that is typed in a text:
`<|im_end|>` in a message becomes the same ID. A user's message can then contain a turn of another role, and a model
learns to stop in the middle of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_trainer.data.end_of_turn import detect_end_of_turn, get_structural_tokens
from finetune_trainer.data.row_texts import Conversation, list_turns
from finetune_trainer.data.row_types import PlainText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ControlTokenFinder:
    """Finds the special tokens, and the tokens that end a turn even if they are not flagged as special.

    Other added tokens, such as `<think>` or the HTML tags of Gemma's vocabulary, belong to ordinary texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        control_ids = {*tokenizer.all_special_ids, *detect_end_of_turn(tokenizer).token_ids} | {
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        texts = [text for token_id, text in get_structural_tokens(tokenizer).items() if token_id in control_ids]
        # Texts that are not rendered by a chat template contain their control tokens.
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts and tokenizer.chat_template else None

    def find(self, conversations: Sequence[Conversation]) -> str | None:
        """Return the first control token in a text that the chat template renders, or None."""
        if self._pattern is None:
            return None
        for conversation in conversations:
            for _, content in [] if isinstance(conversation, PlainText) else list_turns(conversation):
                if match := self._pattern.search(content):
                    return match.group()
        return None
