"""Rows with words that the chat template removes or rewrites."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.chat_template_families import LLAMA3
from tests.support.trainer.data_preparation import build_config, prepare_rows
from tests.support.trainer.tiny_model import CHATML, MARKED_CHATML, TRAINING_TIMEOUT, chat, import_libraries

from finetune_trainer.contract import Reason
from finetune_trainer.data.bundled_templates import find_bundled_template
from finetune_trainer.data.rewritten_text import RewrittenRows
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

KEEP_ALL = {"maxRewrittenFraction": 1}
THINKING = "<think>\nI add.\n</think>\n\n4"
THINKING_TURNS = chat("2+2", THINKING, "3+3", THINKING.replace("4", "6"))
THINKING_PROMPT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
NO_SYSTEM_TEMPLATE = CHATML.replace(
    "{% for m in messages %}", "{% for m in messages if m.role in ['user', 'assistant'] %}"
)
UPPER_CASE_OTHERS = CHATML.replace("m.content", "(m.content if m.role == 'assistant' else m.content | upper)")
ENDING_SYSTEM_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{% if loop.index >= messages | length - 1 %}"
    "{{ messages[0].content }}\n{% endif %}{{ m.content }}{% elif m.role == 'assistant' %}<|assistant|>{{ m.content }}"
    "<|im_end|>{% endif %}{% endfor %}"
)
"""Like Mistral's template: the system turn is a part of the last user turn."""
TOOL_TURNS = [*chat("Weather?", "I call a tool")["messages"], {"role": "tool", "content": '{"sky": "clear"}'}]
TOOL_ROW = {"messages": [*TOOL_TURNS, {"role": "assistant", "content": "Sunny"}]}
# Template (the name of one of TRL, or its source), row, and the words that the template removes.
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "DeepSeek R1": ("deepseek_r1_distill_chat_template", chat("2+2", THINKING), "<think> I add. </think>"),
    "DeepSeek V3": ("deepseekv3_chat_template", chat("2+2", THINKING), "<think> I add. </think>"),
    "DeepSeek R1, for training": ("deepseek_r1_distill_training_chat_template", chat("2+2", THINKING), ""),
    "Qwen 3": ("qwen3_chat_template", chat("2+2", THINKING), ""),
    "Qwen 3, two turns": ("qwen3_chat_template", THINKING_TURNS, "<think> I add. </think>"),
    "Qwen 3, two turns without reasoning": ("qwen3_chat_template", chat("2+2", "4", "3+3", "6"), ""),
    "Qwen 3, for training": ("qwen3_training_chat_template", THINKING_TURNS, ""),
    "GLM 4 MoE": ("glm4moe_chat_template", THINKING_TURNS, "I add."),
    "gpt-oss": ("gptoss_chat_template", chat("2+2", "4", system="Be terse."), ""),
    "start of the answer in the generation prompt": (THINKING_PROMPT, chat("2+2", THINKING), ""),
    "whitespace": (LLAMA3, chat("Hi", " Hello\n\n"), ""),
    "lower case": (CHATML.replace("content", "content | lower"), chat("hi", "this is Paris"), "Paris"),
    "replaced word": (CHATML.replace("content", "content | replace('red', '')"), chat("hi", "a red cat"), "red"),
    "repeated word": (CHATML.replace("content", "content | replace('no no', 'no')"), chat("hi", "no no"), "no"),
    "markers": (MARKED_CHATML.replace("{{ m.content }}", "{{ m.content[:5] }}"), chat("a", "one two"), "two"),
    "no system turn": (NO_SYSTEM_TEMPLATE, chat("Hi", "Hello", system="Be terse."), "Be terse."),
    "no tool turn": (NO_SYSTEM_TEMPLATE, TOOL_ROW, '{"sky": "clear"}'),
    "tool turn as JSON": (CHATML.replace("m.content", "m.content | tojson"), TOOL_ROW, ""),
    "answer as JSON": (CHATML.replace("m.content", "m.content | tojson"), chat("a\nb", "1.\nOne\n2"), ""),
    "answer of one sentence as JSON": (CHATML.replace("m.content", "m.content | tojson"), chat("a", 'the "X"\ty'), ""),
    "user turns with the words of the answers": (UPPER_CASE_OTHERS, chat("yes", "yes", "ok", "yes"), "yes"),
    "user turn with the words of a later one": (
        CHATML.replace("{{ m.content", "{{ '' if loop.first else m.content"),
        chat("go on", "a", "go on", "b"),
        "go on",
    ),
    "user turn with the words of the next one": (
        CHATML.replace("{{ m.content", "{{ '' if loop.first else m.content"),
        {"messages": [{"role": "user", "content": "go on"}, *chat("go on", "b")["messages"]]},
        "go on",
    ),
    "system turn with the words of the user": (UPPER_CASE_OTHERS, chat("yes", "a", system="yes"), "yes"),
    "dropped system turn with the words of the user": (NO_SYSTEM_TEMPLATE, chat("yes", "a", system="yes"), "yes"),
    "system turn in the last user turn": (ENDING_SYSTEM_TEMPLATE, chat("yes", "a", "no", "b", system="yes or no"), ""),
    "user turn after the last answer": (CHATML.replace("<|im_end|>", " [/END]"), chat("Hi", "Hello", "Bye"), ""),
}


@pytest.mark.parametrize(("template", "row", "removed"), ROWS.values(), ids=ROWS)
def test_rewritten_row_is_counted_with_removed_words(
    tmp_path: Path, template: str, row: dict[str, Any], removed: str
) -> None:
    import_libraries()
    from trl import chat_template_utils

    source = vars(chat_template_utils).get(template, template)
    prepared = prepare_rows(tmp_path, [row], build_config(max_length=1000, preparation=KEEP_ALL), template=source)
    expected = RewrittenRows(1, 1, "s3://data/train.jsonl line 1", removed) if removed else RewrittenRows(0, 1)
    assert prepared.rewritten == expected


LOWER_CASE = CHATML.replace("content", "content | lower")
DATA_IN_TWO_CASES = [chat(f"question {number}", "Yes" if number < 3 else "no") for number in range(200)]


def test_rewritten_rows_above_limit_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainerError) as caught:
        prepare_rows(tmp_path, DATA_IN_TWO_CASES, build_config(), template=LOWER_CASE)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    message = re.sub(r"chatTemplateName: [\w, ]+, or", "chatTemplateName: NAMES, or", str(caught.value))
    assert message == (
        "3 of 200 rows (1.5 %): the chat template removes or rewrites words of the data, such as "
        '"Yes" in s3://data/train.jsonl line 1; at most 1 % may be rewritten; use a chat template that keeps all words '
        "(model.chatTemplateName: NAMES, or model.chatTemplate), remove these words from the data, or raise "
        "dataset.preparation.maxRewrittenFraction"
    )


CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
CALL_TURN = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL_TURN = {"role": "tool", "content": "20 degrees"}
TOOL = {"name": "get_weather", "description": "Weather of a city"}
QUESTION, ANSWER = chat("Is it warm?", "Yes")["messages"]
REASONED_ANSWER = {**ANSWER, "reasoning_content": "20 is warm"}
UNWRITTEN_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "tools and calls": (
        {"messages": [QUESTION, CALL_TURN, TOOL_TURN, ANSWER], "tools": [TOOL]},
        "does not write tool definitions and tool calls, such as",
    ),
    "calls alone": ({"messages": [QUESTION, CALL_TURN]}, "does not write tool calls, such as"),
    "reasoning": ({"messages": [QUESTION, REASONED_ANSWER]}, "does not write reasoning, such as"),
    "everything": (
        {"messages": [QUESTION, CALL_TURN, TOOL_TURN, REASONED_ANSWER], "tools": [TOOL]},
        "does not write tool definitions, tool calls and reasoning, such as",
    ),
}


@pytest.mark.parametrize(("row", "problem"), UNWRITTEN_ROWS.values(), ids=UNWRITTEN_ROWS)
def test_unwritten_parts_are_named_with_a_template_that_writes_them(
    tmp_path: Path, row: dict[str, Any], problem: str
) -> None:
    with pytest.raises(TrainerError) as caught:
        prepare_rows(tmp_path, [row], build_config(max_length=2000))
    assert problem in str(caught.value)
    names = str(caught.value).partition("model.chatTemplateName: ")[2].partition(", or model.chatTemplate)")[0]
    assert "qwen3" in names
    for name in names.replace(" or ", ", ").split(", "):
        source = find_bundled_template(name).read_text(encoding="utf-8")
        prepared = prepare_rows(tmp_path / name, [row], build_config(max_length=2000), template=source)
        assert (prepared.report.kept, prepared.rewritten.count) == (1, 0)


def test_unwritten_parts_name_no_template_for_another_vocabulary(tmp_path: Path) -> None:
    row = {"messages": [{**QUESTION, "content": "<|unknown|>"}, REASONED_ANSWER]}
    with pytest.raises(TrainerError, match=r"use a chat template that keeps all words \(model.chatTemplate\), remove"):
        prepare_rows(tmp_path, [row], build_config())


UNSEPARATED_TEMPLATES = {
    "upper case of answers alone": (
        "(m.content | upper if m.role == 'assistant' else m.content)",
        "removes or rewrites words of the data, such as",
    ),
    "upper case": ("m.content | upper", "removes or rewrites words of the data, such as"),
    "cut off": ("m.content[:10]", "removes or rewrites words of the data, such as"),
    "start removed": ("m.content[3:]", "removes or rewrites words of the data, such as"),
    "typing error": ("m.contnt", "renders no text of the answers, such as"),
}


@pytest.mark.parametrize(("content", "problem"), UNSEPARATED_TEMPLATES.values(), ids=UNSEPARATED_TEMPLATES)
def test_rewritten_answer_that_cannot_be_found_ends_the_run(tmp_path: Path, content: str, problem: str) -> None:
    template = CHATML.replace("m.content", content)
    with pytest.raises(TrainerError) as caught:
        prepare_rows(
            tmp_path,
            [chat(f"q{number}", "yes, this is an answer") for number in range(4)],
            build_config(),
            template=template,
        )
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    assert str(caught.value).startswith(f"4 of 4 rows (100 %): the chat template {problem}")


def test_rewritten_answer_that_cannot_be_found_is_rejected_up_to_limit(tmp_path: Path) -> None:
    template = CHATML.replace("m.content", "(m.content | upper if 'loud' in messages[0].content else m.content)")
    rows = [chat("loud", "yes"), *(chat(f"quiet {number}", "yes") for number in range(199))]
    prepared = prepare_rows(tmp_path, rows, build_config(), template=template)
    assert prepared.report.rejected == {"rewrittenAnswer": 1}
    assert (prepared.rewritten.count, prepared.rewritten.rows, prepared.report.kept) == (1, 200, 199)
    assert (prepared.rewritten.where, prepared.rewritten.example) == ("s3://data/train.jsonl line 1", "yes")


def test_rewritten_rows_up_to_limit_are_trained(tmp_path: Path) -> None:
    prepared = prepare_rows(tmp_path, DATA_IN_TWO_CASES[2:], build_config(), template=LOWER_CASE)
    assert (prepared.rewritten.count, prepared.rewritten.rows, prepared.report.kept) == (1, 198, 198)


def test_rewritten_row_that_is_rejected_is_not_counted(tmp_path: Path) -> None:
    rows = [chat("hi", "Yes"), chat("hi", "Yes"), chat("long", "Yes " * 400), chat("b", "no")]
    rewritten = prepare_rows(tmp_path, rows, build_config(preparation=KEEP_ALL), template=LOWER_CASE).rewritten
    assert (rewritten.count, rewritten.rows) == (1, 2)


def test_rewritten_example_has_no_personal_data(tmp_path: Path) -> None:
    rows = [chat("hi", "Write to Ada@Example.com")]
    rewritten = prepare_rows(tmp_path, rows, build_config(preparation=KEEP_ALL), template=LOWER_CASE).rewritten
    assert rewritten.example == "Write"
    rows = [chat("hi", "Ada@Example.com")]
    rewritten = prepare_rows(tmp_path / "2", rows, build_config(preparation=KEEP_ALL), template=LOWER_CASE).rewritten
    assert "Ada@Example.com" not in rewritten.example


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_rewritten_preference_is_counted(tmp_path: Path, method: str) -> None:
    import_libraries()
    from trl.chat_template_utils import deepseek_r1_distill_chat_template

    settings = build_config({"method": method, "batchSize": 2}, preparation=KEEP_ALL)
    rows = [{"prompt": "2+2", "chosen": "4", "rejected": THINKING}]
    rewritten = prepare_rows(tmp_path, rows, settings, template=deepseek_r1_distill_chat_template).rewritten
    assert (rewritten.count, rewritten.example) == (1, "<think> I add. </think>")
