"""Messages in the form that one chat template reads.

Templates agree on `role` and `content` only. The reasoning is `reasoning_content` in most of them and `thinking` in
that of gpt-oss. The arguments of a tool call are an object for most of them and JSON text for those of DeepSeek, which
also write calls only if `content` is null. Most templates drop or reject turns of the role `developer`, which OpenAI's
newer models have instead of `system`. Which form a template reads follows from what it renders of a probe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from finetune_trainer.data.chat_template import ANSWER_MARK, ChatTemplate, Messages
from finetune_trainer.data.row_types import REASONING_KEYS, Message, RowError, ToolDefinition

_USER_TURN: Message = {"role": "user", "content": "question"}
_PROBE_NAME = "get_probe_value"
_PROBE_TOOL: ToolDefinition = {
    "type": "function",
    "function": {"name": _PROBE_NAME, "description": "Probe", "parameters": {"type": "object", "properties": {}}},
}
# Mistral's templates accept only identifiers of nine letters and digits.
_PROBE_CALL = {
    "type": "function",
    "id": "probe0001",
    "function": {"name": _PROBE_NAME, "arguments": {ANSWER_MARK: ANSWER_MARK}},
}


@dataclass(frozen=True)
class _CallForm:
    """How a template reads a turn with tool calls."""

    has_text_arguments: bool = False
    """Whether the arguments are JSON text instead of an object."""
    has_null_content: bool = False
    """Whether the content of a turn that only calls tools is null instead of an empty text."""

    def adapt(self, message: Message) -> Message:
        calls = message["tool_calls"]
        return {
            **message,
            "content": message["content"] or (None if self.has_null_content else ""),
            "tool_calls": [_write_arguments(call) for call in calls] if self.has_text_arguments else calls,
        }


class MessageAdapter:
    """Adapts messages to one chat template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def adapt(self, messages: Messages) -> Messages:
        """Return the messages in the form that the template reads."""
        return [self._adapt_message(message) for message in messages]

    def render_call_probe(self) -> str:
        """Return a conversation that ends with a tool call with `ANSWER_MARK` as argument. Raises `RowError`."""
        return self._template.render(self.adapt(_build_call_probe()), [_PROBE_TOOL])

    def find_call_prefix(self) -> str:
        """Return what the template writes between a prompt and the name of the function, or an empty text."""
        user_turn, _ = _build_call_probe()
        try:
            prompt = self._template.render([user_turn], [_PROBE_TOOL], add_generation_prompt=True)
            text = self.render_call_probe()
        except RowError:
            return ""
        return text[len(prompt) :].partition(_PROBE_NAME)[0] if text.startswith(prompt) else ""

    @property
    def writes_definitions(self) -> bool:
        """Whether the template writes the definitions of tools."""
        return _PROBE_NAME in _render_if_accepted(self._template, [_USER_TURN], [_PROBE_TOOL])

    @property
    def writes_calls(self) -> bool:
        """Whether the template writes tool calls."""
        try:
            return ANSWER_MARK in self.render_call_probe()
        except RowError:
            return False

    @property
    def writes_reasoning(self) -> bool:
        """Whether the template writes the reasoning of the last answer."""
        return self._writes_reasoning_key(self._reasoning_key)

    def _writes_reasoning_key(self, key: str) -> bool:
        turns = [_USER_TURN, {"role": "assistant", "content": "answer", key: ANSWER_MARK}]
        return ANSWER_MARK in _render_if_accepted(self._template, turns)

    def _adapt_message(self, message: Message) -> Message:
        if message["role"] == "developer":
            return {**message, "role": self._developer_role}
        if "reasoning_content" in message and self._reasoning_key not in message:
            others = {key: value for key, value in message.items() if key != "reasoning_content"}
            message = {**others, self._reasoning_key: message["reasoning_content"]}
        return self._call_form.adapt(message) if "tool_calls" in message else message

    @cached_property
    def _developer_role(self) -> str:
        turns = [{"role": "developer", "content": ANSWER_MARK}, _USER_TURN]
        return "developer" if ANSWER_MARK in _render_if_accepted(self._template, turns) else "system"

    @cached_property
    def _reasoning_key(self) -> str:
        # If the template writes no reasoning, the row counts as rewritten.
        return next(filter(self._writes_reasoning_key, REASONING_KEYS), REASONING_KEYS[0])

    @cached_property
    def _call_form(self) -> _CallForm:
        for form in _list_call_forms():
            user_turn, call_turn = _build_call_probe()
            text = _render_if_accepted(self._template, [user_turn, form.adapt(call_turn)], [_PROBE_TOOL])
            if ANSWER_MARK in text:
                return form
        return _CallForm()  # the template writes no calls, so the row counts as rewritten


def remove_reasoning(message: Message) -> Message:
    """Return the message without its reasoning, in the form of any template."""
    return {key: value for key, value in message.items() if key not in REASONING_KEYS}


def _list_call_forms() -> Iterator[_CallForm]:
    for has_text_arguments, has_null_content in product((False, True), repeat=2):
        yield _CallForm(has_text_arguments, has_null_content)


def _build_call_probe() -> Messages:
    return [_USER_TURN, {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]}]


def _write_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _render_if_accepted(template: ChatTemplate, messages: Messages, tools: list[ToolDefinition] | None = None) -> str:
    try:
        return template.render(messages, tools or [])
    except RowError:
        return ""
