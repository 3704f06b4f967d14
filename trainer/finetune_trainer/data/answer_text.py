"""Separates an answer into its reasoning, its text and its tool calls.

The same rules apply to the answers of the data and to generated answers, so that metrics compare like with like. The
formats are those that common chat templates write, and that the reasoning and tool parsers of servers read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_REASONING_MARKERS = (
    ("<think>", "</think>"),  # DeepSeek, GLM, Nemotron, Qwen, SmolLM and others
    ("<seed:think>", "</seed:think>"),  # Seed
    ("<thought>", "</thought>"),  # EXAONE
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|channel>thought", "<channel|>"),  # Gemma
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
)
"""What begins and ends the reasoning. The generation prompt may contain the beginning."""
_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
_FINAL_CHANNEL = f"{_CHANNEL}final{_MESSAGE}"
_CHANNEL_MESSAGE = re.compile(
    r"(?:<\|start\|>assistant)?(?P<sender>[^<]*)<\|channel\|>(?P<channel>\w+)(?P<recipient>[^<]*)"
    r"(?:<\|constrain\|>[^<]*)?<\|message\|>(?P<text>.*?)(?=<\|(?:end|start|channel|call|return)\|>|$)"
    r"(?:<\|(?:end|call|return)\|>)?",
    re.DOTALL,
)
"""A message of gpt-oss: `<|channel|>final<|message|>text<|end|>`; a call has the recipient `to=functions.NAME`."""
_RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")
_CALL_BLOCKS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)",  # Hermes, Qwen
        r"<\|tool_call\|>\s*(.*?)\s*(?:<\|/tool_call\|>|$)",  # Phi, Granite
        r"<\|START_ACTION\|>\s*(.*?)\s*(?:<\|END_ACTION\|>|$)",  # Command R and A
        r"\[TOOL_CALLS\]\s*(.*)$",  # Mistral
        r"^\s*(?:<\|python_tag\|>)?\s*(\{.*\})\s*$",  # Llama 3.1: the call is all of the answer
    )
)
_TAGGED_CALLS = (
    (re.compile(r"<function=([^>\n]+)>"), re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)),
    (
        re.compile(r"^\s*([^\s<{]+)\s*(?=<arg_key>)"),
        re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL),
    ),
)
"""Name and arguments of a tool call in tags: those of Qwen 3.5 and Nemotron, and those of GLM."""
_TAG_TOKENS = ("<tool_call>", "</tool_call>", "<|tool_call|>", "<|/tool_call|>", "[TOOL_CALLS]")
_ACTION_TOKENS = ("<|START_ACTION|>", "<|END_ACTION|>", "<|python_tag|>")
_CHANNEL_TOKENS = (_CHANNEL, _MESSAGE, "<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")
_GEMMA_TOKENS = ("<|channel>", "<channel|>")


@dataclass(frozen=True)
class AnswerParts:
    """The parts of an answer."""

    text: str
    """The answer without its reasoning. Tool calls follow the content, one per line, in the form of `format_call`."""
    reasoning: str = ""


def list_marker_tokens(vocabulary: Mapping[str, int]) -> set[int]:
    """Return the IDs of the tokens that `parse_answer` reads. Most of them are special tokens."""
    names = [*(name for pair in _REASONING_MARKERS for name in pair), *_GEMMA_TOKENS, *_TAG_TOKENS, *_ACTION_TOKENS]
    if _CHANNEL in vocabulary:  # other families use some of these tokens for turns
        names += _CHANNEL_TOKENS
    return {vocabulary[name] for name in names if name in vocabulary}


def find_opened_marker(prompt: str) -> str:
    """Return what the end of a prompt opens: the marker of the reasoning, the header of a channel, or nothing."""
    text = prompt.rstrip()
    channel_headers = (f"{_CHANNEL}analysis{_MESSAGE}", _FINAL_CHANNEL)
    markers = (*(start for start, _ in _REASONING_MARKERS), *channel_headers)
    return next((marker for marker in markers if text.endswith(marker)), "")


def parse_answer(text: str) -> AnswerParts:
    """Separate the reasoning, and write tool calls in the form of `format_call`.

    An answer that does not end its reasoning has no text. Tool calls in other formats are kept as they are.
    """
    if _CHANNEL in text or _MESSAGE in text:
        return _parse_channels(text)
    reasoning, content = _split_reasoning(text)
    return AnswerParts(_rewrite_calls(content), reasoning)


def join_answer(content: str, calls: Sequence[Mapping[str, object]]) -> str:
    """Return the text of an answer with its tool calls, as `parse_answer` does."""
    lines = [format_call(str(call["name"]), call["arguments"]) for call in calls]
    return "\n".join([*([content.strip()] if content.strip() else []), *lines])


def format_call(name: str, arguments: object) -> str:
    """Return a tool call as JSON that is equal for equal calls: the order of the arguments does not matter."""
    return f'{{"name": {_to_json(name)}, "arguments": {_to_json(arguments)}}}'


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _split_reasoning(text: str) -> tuple[str, str]:
    """Return the reasoning at the start of a text, and the rest.

    Some templates write an empty block before the one of the content, so there may be several. The start marker may be
    missing if it is in the prompt; then a line ends after the end marker.
    """
    blocks, rest = list[str](), text.strip()
    for start, end in _REASONING_MARKERS:
        head, _, tail = rest.partition(end)
        if start not in head and tail.startswith("\n"):
            blocks, rest = [head], tail.strip()
        while rest.startswith(start):
            head, _, tail = rest.removeprefix(start).partition(end)
            blocks, rest = [*blocks, head], tail.strip()
    return "\n".join(block.strip() for block in blocks if block.strip()), rest


def _parse_channels(text: str) -> AnswerParts:
    """Separate the messages of gpt-oss: analysis is reasoning, and a recipient makes a message a tool call."""
    matches = list(_CHANNEL_MESSAGE.finditer(text))
    if not matches:  # the header is in the prompt
        return AnswerParts(text.rpartition(_MESSAGE)[2].strip())
    analyses = [match["text"].strip() for match in matches if _is_reasoning(match)]
    answers = [_read_channel_message(match) for match in matches if not _is_reasoning(match)]
    reasoning, content = _split_reasoning("\n".join(filter(None, answers)))
    return AnswerParts(content, "\n".join(filter(None, (*analyses, reasoning))))


def _is_reasoning(match: re.Match[str]) -> bool:
    return match["channel"] == "analysis" and not _RECIPIENT.search(match["sender"] + match["recipient"])


def _read_channel_message(match: re.Match[str]) -> str:
    text, recipient = match["text"].strip(), _RECIPIENT.search(match["sender"] + match["recipient"])
    if recipient is None:
        return text
    arguments = _load_json(text)
    return text if arguments is None else format_call(recipient[1], arguments)


def _rewrite_calls(content: str) -> str:
    """Return the content with its tool calls in the form of `format_call`, or unchanged if one is unreadable."""
    for pattern in _CALL_BLOCKS:
        blocks = pattern.findall(content)
        calls = [_read_calls(block) for block in blocks]
        if blocks and all(calls):
            return join_answer(pattern.sub("", content), [call for block_calls in calls for call in block_calls])
    return content


def _read_calls(block: str) -> list[dict[str, object]]:
    """Return the calls in a block, or nothing if it is neither JSON nor has the tags of Qwen or GLM."""
    value = _load_json(block) or _read_tagged_call(block)
    items = value if isinstance(value, list) else [value]
    calls = [_read_call(item) for item in items]
    return [call for call in calls if call] if all(calls) else []


def _read_tagged_call(block: str) -> dict[str, object] | None:
    for name_pattern, argument_pattern in _TAGGED_CALLS:
        name = name_pattern.search(block)
        if name:
            arguments = {key: _load_json_or_text(text) for key, text in argument_pattern.findall(block)}
            return {"name": name[1], "arguments": arguments}
    return None


def _load_json_or_text(text: str) -> object:
    value = _load_json(text)
    return text if value is None else value


def _read_call(value: object) -> dict[str, object] | None:
    if not isinstance(value, dict):
        return None
    name = value.get("name", value.get("tool_name"))
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = _load_json(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return {"name": name, "arguments": arguments}


def _load_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # an answer of brackets alone is nested too deeply
        return None
