"""Answers are separated into reasoning, text and tool calls, whatever chat template has written them."""

from __future__ import annotations

import pytest

from finetune_trainer.data.answer_text import AnswerParts, find_opened_marker, format_call, parse_answer

CALL = format_call("get_weather", {"city": "Oslo", "unit": "c"})
PARAMETERS = '"unit": "c", "city": "Oslo"'
QWEN_TAGS = (
    "<function=get_weather>\n<parameter=unit>\nc\n</parameter>\n<parameter=city>\nOslo\n</parameter>\n</function>"
)
GLM_TAGS = (
    "get_weather\n<arg_key>unit</arg_key>\n<arg_value>c</arg_value>\n<arg_key>city</arg_key>\n"
    "<arg_value>Oslo</arg_value>\n"
)
# Text, and its answer and reasoning.
ANSWERS: dict[str, tuple[str, str, str]] = {
    "plain": (" 4\n", "4", ""),
    "think block": ("<think>\nI add.\n</think>\n\n4", "4", "I add."),
    "empty think block": ("<think>\n\n</think>\n\n4", "4", ""),
    "empty block before another one": ("<think>\n\n</think>\n\n<think>\nI add.\n</think>\n\n4", "4", "I add."),
    "start of the block in the prompt": ("I add.\n</think>\n\n4", "4", "I add."),
    "reasoning without end": ("<think>\nI add.", "", "I add."),
    "tags in the answer": ("Write <think>…</think> around it.", "Write <think>…</think> around it.", ""),
    "end tag that is explained": ("<think>\nWell.\n</think>\nIt ends at </think>.", "It ends at </think>.", "Well."),
    "end tag in the answer": ("It ends at </think>.", "It ends at </think>.", ""),
    "Seed": ("<seed:think>I add.</seed:think>4", "4", "I add."),
    "Magistral": ("[THINK]I add.[/THINK]4", "4", "I add."),
    "Command A": ("<|START_THINKING|>I add.<|END_THINKING|>4", "4", "I add."),
    "Gemma": ("<|channel>thought\nI add.\n<channel|>4", "4", "I add."),
    "Apertus": ("<|inner_prefix|>I add.<|inner_suffix|>4", "4", "I add."),
    "gpt-oss": (
        "<|channel|>analysis<|message|>I add.<|end|><|start|>assistant<|channel|>final<|message|>4",
        "4",
        "I add.",
    ),
    "gpt-oss, analysis only": ("<|channel|>analysis<|message|>I add", "", "I add"),
    "gpt-oss, header in the prompt": ("final<|message|>4", "4", ""),
    "gpt-oss, preamble": (
        "<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
        "One moment.\n4",
        "",
    ),
    "gpt-oss, call": (
        "<|channel|>analysis<|message|>I ask.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        f"<|constrain|>json<|message|>{{{PARAMETERS}}}<|call|>",
        CALL,
        "I ask.",
    ),
    "gpt-oss, recipient first": (
        f" to=functions.get_weather<|channel|>commentary json<|message|>{{{PARAMETERS}}}<|call|>",
        CALL,
        "",
    ),
    "Hermes": (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {{{PARAMETERS}}}}}\n</tool_call>',
        CALL,
        "",
    ),
    "reasoning, text and two calls": (
        "<think>\nI ask.\n</think>\n\nOne moment.\n"
        + 2 * f'<tool_call>\n{{"arguments": {{{PARAMETERS}}}, "name": "get_weather"}}\n</tool_call>\n',
        f"One moment.\n{CALL}\n{CALL}",
        "I ask.",
    ),
    "arguments as text": (
        '<tool_call>{"name": "get_weather", "arguments": "{\\"unit\\": \\"c\\", \\"city\\": \\"Oslo\\"}"}</tool_call>',
        CALL,
        "",
    ),
    "Qwen 3.5": (f"<tool_call>\n{QWEN_TAGS}\n</tool_call>", CALL, ""),
    "GLM": (f"<tool_call>{GLM_TAGS}</tool_call>", CALL, ""),
    "Llama 3.1": (f'{{"name": "get_weather", "parameters": {{{PARAMETERS}}}}}', CALL, ""),
    "Mistral": (f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {{{PARAMETERS}}}}}]', CALL, ""),
    "Command R": (
        f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {{{PARAMETERS}}}}}]'
        "<|END_ACTION|>",
        CALL,
        "",
    ),
    "Phi": (f'<|tool_call|>[{{"name": "get_weather", "arguments": {{{PARAMETERS}}}}}]<|/tool_call|>', CALL, ""),
    "damaged call": ('<tool_call>{"name": "get_wea</tool_call>', '<tool_call>{"name": "get_wea</tool_call>', ""),
    "JSON that is no call": ('{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', ""),
}


@pytest.mark.parametrize(("text", "answer", "reasoning"), ANSWERS.values(), ids=ANSWERS)
def test_parse_answer_separates_reasoning_and_calls(text: str, answer: str, reasoning: str) -> None:
    assert parse_answer(text) == AnswerParts(answer, reasoning)


OPENED = {
    "<|im_start|>assistant\n<think>\n": "<think>",
    "<|im_start|>assistant\n<think>\n\n</think>\n\n": "",
    "<|start|>assistant<|channel|>final<|message|>": "<|channel|>final<|message|>",
    "<|im_start|>assistant\n": "",
}


@pytest.mark.parametrize(("prompt", "marker"), OPENED.items(), ids=OPENED)
def test_find_opened_marker_reads_end_of_prompt(prompt: str, marker: str) -> None:
    assert find_opened_marker(prompt) == marker
