"""What a chat template lacks that does not write all words of a row, and which of TRL's templates keep the row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from finetune_trainer.data.bundled_templates import find_bundled_template, list_template_names
from finetune_trainer.data.chat_template import ChatTemplate
from finetune_trainer.data.end_of_turn import get_structural_tokens
from finetune_trainer.data.loss_masking import LossMasker
from finetune_trainer.data.rewritten_text import find_removed_text
from finetune_trainer.data.row_texts import list_conversations
from finetune_trainer.data.row_types import Chat, Row, RowError
from finetune_trainer.data.template_messages import MessageAdapter
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_NAMES = 3
_PLAIN_TURNS = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
_CONTROL_TEXT = re.compile(r"<[|\uff5c][^<>\s]*>|<[^<>\s]*[|\uff5c]>|<(?:start|end)_of_\w+>|\[/?[A-Z][A-Z_]+\]")
"""Texts that templates write as control tokens. DeepSeek's have a wide vertical line."""


def describe_problem(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return which parts of the row the chat template writes in no conversation, or an empty text if there are none."""
    adapter = MessageAdapter(ChatTemplate(tokenizer))
    chats = [conversation for conversation in list_conversations(row) if isinstance(conversation, Chat)]
    keys = {key for chat in chats for message in chat.messages for key in message}
    parts = {
        "tool definitions": any(chat.tools for chat in chats) and not adapter.writes_definitions,
        "tool calls": "tool_calls" in keys and not adapter.writes_calls,
        "reasoning": "reasoning_content" in keys and not adapter.writes_reasoning,
    }
    unwritten = [name for name, is_unwritten in parts.items() if is_unwritten]
    return f"does not write {_join(unwritten, 'and')}" if unwritten else ""


def describe_remedy(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return which chat template to use, with the names of up to three templates of TRL that keep the row.

    They write control tokens that the vocabulary has. The template that is most similar to the present one is first.
    """
    tokenizers = {name: _replace_template(tokenizer, name) for name in list_template_names()}
    complete = {name: each for name, each in tokenizers.items() if _is_complete(row, each)}
    plain_text = _render_plain(tokenizer)
    differences = {name: -_compute_similarity(_render_plain(each), plain_text) for name, each in complete.items()}
    names = sorted(complete, key=lambda name: (differences[name], name))[:_MAX_NAMES]
    settings = f"model.chatTemplateName: {_join(names, 'or')}, or model.chatTemplate" if names else "model.chatTemplate"
    return f"use a chat template that keeps all words ({settings})"


def _join(names: Sequence[str], conjunction: str) -> str:
    return f" {conjunction} ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _replace_template(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    other_tokenizer = copy(tokenizer)
    other_tokenizer.chat_template = find_bundled_template(name).read_text(encoding="utf-8")
    return other_tokenizer


def _render_plain(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return ChatTemplate(tokenizer).render(_PLAIN_TURNS)
    except RowError:
        return ""


def _compute_similarity(text: str, other_text: str) -> float:
    return SequenceMatcher(None, text, other_text, autojunk=False).ratio()


def _is_complete(row: Row, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template writes all words of the row, with control tokens of the vocabulary."""
    known_texts = set(get_structural_tokens(tokenizer).values())
    conversations = list_conversations(row)
    try:
        texts = [LossMasker(tokenizer).render(conversation) for conversation in conversations]
    except (RowError, TrainerError):
        return False
    return all(
        known_texts.issuperset(_CONTROL_TEXT.findall(rendered.text))
        and not rendered.needs_eos
        and find_removed_text(conversation, rendered) is None
        for conversation, rendered in zip(conversations, texts, strict=True)
    )
