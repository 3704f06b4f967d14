"""Conversations that are spread over the columns of a row: system text, tools, earlier turns, prompt and answer."""

from __future__ import annotations

import re
from dataclasses import replace

from finetune_trainer.data.conversations import (
    build_turn,
    get_optional_text,
    join_chats,
    parse_turns,
    require_nonblank_text,
    require_text,
)
from finetune_trainer.data.readers.json_rows import describe_type
from finetune_trainer.data.row_columns import RowColumns
from finetune_trainer.data.row_types import Chat, PromptCompletion, RowError
from finetune_trainer.data.tool_calls import find_written_calls, parse_json, parse_tools

_TURNS_TEXT = re.compile(
    r"""\s*\[\s*\{.*['"](role|from)['"]\s*:\s*['"](system|developer|user|assistant|tool|human|gpt)['"].*\]\s*""",
    re.DOTALL,
)


def parse_prompt(row: RowColumns, column: str) -> str | Chat:
    """Return the prompt of a row: text, followed by the text of `input` after a blank line, or turns."""
    prompt = row.require(column)
    if isinstance(prompt, list) or is_turns_text(prompt):
        return parse_turns(row, column, prompt)
    input_text = get_optional_text(row, "input")
    prompt_text = require_text(f"'{column}'", prompt)
    return f"{prompt_text}\n\n{input_text}" if input_text else prompt_text


def parse_answer(row: RowColumns, column: str) -> str | Chat:
    """Return the answer of a row: text, or turns. Raises `RowError` if it is empty."""
    answer = row.require(column)
    if isinstance(answer, str) and not is_turns_text(answer):
        return require_nonblank_text(f"'{column}'", answer)
    is_turn = isinstance(answer, dict) and ("role" in answer or "from" in answer)
    if not is_turn and not isinstance(answer, str | list):
        hint = "; write numbers as text" if isinstance(answer, int | float) else ""
        raise RowError(f"expected '{column}' to be text or a list of turns, found {describe_type(answer)}{hint}")
    return parse_turns(row, column, [answer] if is_turn else answer)


def is_turns_text(value: object) -> bool:
    """Return whether a value is a list of turns as text, which CSV files have. It may be invalid JSON."""
    return isinstance(value, str) and value.lstrip().startswith("[") and _TURNS_TEXT.fullmatch(value) is not None


def build_answered_row(row: RowColumns, prompt: str | Chat, answer: str | Chat) -> Chat | PromptCompletion:
    """Return the prompt with its answer: as two texts, or as a conversation if there is more than two texts."""
    earlier_turns = _parse_history(row) if isinstance(prompt, str) else None
    answer_turns = _build_answer(row, answer) if isinstance(answer, str) else answer
    if isinstance(prompt, Chat):
        return add_context(row, join_chats(prompt, answer_turns))
    if isinstance(answer, str) and not earlier_turns and not any(map(row.has, ("system", "tools", "functions"))):
        return PromptCompletion(prompt, answer)
    user_turn = build_turn("user", require_nonblank_text("the prompt", prompt, "a message of the user"))
    prompt_turns = join_chats(earlier_turns, user_turn) if earlier_turns else user_turn
    return add_context(row, join_chats(prompt_turns, answer_turns))


def _build_answer(row: RowColumns, answer: str) -> Chat:
    """Return an answer as a turn: with calls if it is the JSON of calls of the row's tools."""
    has_tools = any(map(row.has, ("tools", "functions")))
    calls = find_written_calls(answer, parse_tools(row)) if has_tools else None
    return (
        Chat([{"role": "assistant", "content": "", "tool_calls": calls}]) if calls else build_turn("assistant", answer)
    )


def add_context(row: RowColumns, conversation: Chat) -> Chat:
    """Return the conversation with the row's system text as its first turn, and with the row's tools."""
    if tools := parse_tools(row):
        conversation = replace(conversation, tools=tools)
    system = get_optional_text(row, "system")
    first_turn = conversation.messages[0]
    if not system or (first_turn["role"] == "system" and first_turn["content"] == system):
        return conversation
    if first_turn["role"] in ("system", "developer"):
        raise RowError(f"has a text in 'system' and another one in its turn of role {first_turn['role']}; keep one")
    return join_chats(build_turn("system", system), conversation)


def _parse_history(row: RowColumns) -> Chat | None:
    """Return the earlier turns: `history` is a list of pairs of a question and its answer."""
    if not row.has("history"):
        return None
    history = parse_json("history", row.get("history"))
    if not isinstance(history, list):
        raise RowError(f"expected 'history' to be a list of pairs of texts, found {describe_type(history)}")
    turns = Chat([])
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"expected history[{index}] to be a pair of texts, found {describe_type(pair)}")
        question = require_nonblank_text(f"history[{index}][0]", pair[0], "a message of the user")
        answer = require_nonblank_text(f"history[{index}][1]", pair[1])
        turns = join_chats(turns, join_chats(build_turn("user", question), build_turn("assistant", answer)))
    return turns if turns.messages else None
