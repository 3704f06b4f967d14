"""Chat templates by name, and the defaults of their variables, compared with transformers' own rendering."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import CHATML, MARKED_CHATML, TRAINING_TIMEOUT, tokenizer

from finetune_trainer.contract import ModelSource, Reason
from finetune_trainer.data.bundled_templates import find_bundled_template
from finetune_trainer.data.chat_template import ChatTemplate
from finetune_trainer.data.end_of_turn import get_stop_token_ids
from finetune_trainer.data.loss_masking import LossMasker, encode_prompt
from finetune_trainer.data.row_types import Chat
from finetune_trainer.data.template_settings import (
    Scalar,
    add_defaults,
    apply_template_settings,
    check_template_settings,
    parse_argument,
)
from finetune_trainer.errors import TrainerError

pytestmark = pytest.mark.timeout(TRAINING_TIMEOUT)

TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
REASONING_TURNS = [{**TURNS[0]}, {**TURNS[1], "reasoning_content": "I add."}, {"role": "user", "content": "3+3?"}]
MOOD = "{% if mood is defined %}[{{ mood }}]{% endif %}"


def build_settings(**fields: Any) -> ModelSource:
    return ModelSource.model_validate({"uri": "s3://models/tiny", **fields})


def find_problem(template: str | None = CHATML, **fields: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        apply_template_settings(tokenizer(template), build_settings(**fields))
    assert caught.value.reason is Reason.CONFIG_INVALID
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "value"),
    {
        "false": False,
        "null": None,
        "3": 3,
        "-0.5": -0.5,
        '"false"': "false",
        "high": "high",
        "True": "True",
        "NaN": "NaN",
        "1e999": "1e999",
        "[1]": "[1]",
        '{"a": 1}': '{"a": 1}',
        '"\\ud800"': '"\\ud800"',
        "": "",
    }.items(),
)
def test_parse_argument_json_scalar_else_text(text: str, value: object) -> None:
    assert parse_argument(text) == value
    assert type(parse_argument(text)) is type(value)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_training"])
def test_bundled_template_prefers_the_one_for_training(name: str) -> None:
    assert find_bundled_template(name).name == "qwen3_training.jinja"


def test_bundled_template_without_one_for_training_is_that_of_the_model() -> None:
    assert find_bundled_template("gemma4").name == "gemma4.jinja"


def test_bundled_template_unknown_name_lists_the_available() -> None:
    with pytest.raises(TrainerError, match=r"TRL has no chat template 'qwen9'; available are .*llama3, .*qwen3, "):
        check_template_settings(build_settings(chatTemplateName="qwen9"))


@pytest.mark.parametrize(
    ("name", "similar"),
    {"qwen2.5": "qwen2_5", "llama-3.1": "llama3_1", "gpt-oss": "gptoss", "deepseek-v3": "deepseekv3"}.items(),
)
def test_bundled_template_mistyped_name_suggests_a_similar_one(name: str, similar: str) -> None:
    with pytest.raises(
        TrainerError, match=f"TRL has no chat template '{name}'; did you mean {similar}\\? available are"
    ):
        check_template_settings(build_settings(chatTemplateName=name))


def test_template_name_replaces_the_template_of_the_tokenizer() -> None:
    words = tokenizer()
    apply_template_settings(words, build_settings(chatTemplateName="qwen3"))
    rendered = LossMasker(words).render(Chat([*TURNS, *TURNS]))
    answers = [rendered.text[start:end] for start, end in rendered.answer_spans]
    assert answers == ["<think>\n\n</think>\n\n4<|im_end|>"] * 2


@pytest.mark.parametrize(
    ("name", "arguments", "values"),
    [
        ("qwen3", {"enable_thinking": "false"}, {"enable_thinking": False}),
        ("glm4moe", {"enable_thinking": "false"}, {"enable_thinking": False}),
        ("gemma4", {"enable_thinking": "true"}, {"enable_thinking": True}),
        ("gptoss", {"reasoning_effort": "high", "model_identity": 'Ada "😀"'}, None),
        ("llama3_2", {"date_string": "1 Jan 2001"}, None),
        ("nemotron_3_nano", {"enable_thinking": "false", "truncate_history_thinking": "false"}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_render_as_those_of_transformers(
    name: str, arguments: dict[str, str], values: Mapping[str, object] | None
) -> None:
    expected_words, words = tokenizer(bos="<|begin_of_text|>"), tokenizer(bos="<|begin_of_text|>")
    expected_words.chat_template = find_bundled_template(name).read_text()
    apply_template_settings(words, build_settings(chatTemplateName=name, chatTemplateArguments=arguments))
    values = values or {key: parse_argument(text) for key, text in arguments.items()}
    for turns, add_prompt in ((TURNS, False), (REASONING_TURNS, True)):
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_prompt}
        expected = expected_words.apply_chat_template(turns, **options, **values)
        assert words.apply_chat_template(turns, **options) == expected
        assert ChatTemplate(words).render(turns, add_generation_prompt=add_prompt) == expected
    assert expected != expected_words.apply_chat_template(turns, **options), "the arguments matter"
    prompt_ids = expected_words.apply_chat_template(TURNS[:1], add_generation_prompt=True, return_dict=True, **values)
    assert encode_prompt(words, "2+2?") == list(prompt_ids["input_ids"])
    assert get_stop_token_ids(words) == get_stop_token_ids(expected_words)


@pytest.mark.parametrize("source", [CHATML, MARKED_CHATML, "\n" + CHATML, "  " + CHATML, "{%- if true %}x{% endif %}"])
def test_defaults_do_not_change_what_the_template_writes(source: str) -> None:
    plain, words = tokenizer(source), tokenizer(add_defaults(source, {"mood": "calm"}))
    assert words.apply_chat_template(TURNS, tokenize=False) == plain.apply_chat_template(TURNS, tokenize=False)


@pytest.mark.parametrize(
    "value", ["a'b\"c", "{{ 1 }} %} -%} {#", "line\nbreak\\n", "zażółć 😀", None, True, 1.5, -7, ""]
)
def test_defaults_keep_the_value(value: Scalar) -> None:
    words = tokenizer(add_defaults("{{ mood | tojson }}", {"mood": value}))
    expected = tokenizer("{{ mood | tojson }}").apply_chat_template(TURNS, tokenize=False, mood=value)
    assert words.apply_chat_template(TURNS, tokenize=False) == expected


def test_defaults_argument_of_the_caller_wins() -> None:
    words = tokenizer(add_defaults(MOOD, {"mood": "calm"}))
    assert words.apply_chat_template(TURNS, tokenize=False) == "[calm]"
    assert words.apply_chat_template(TURNS, tokenize=False, mood="loud") == "[loud]"
    assert words.apply_chat_template(TURNS, tokenize=False, mood=None) == "[None]"


def test_defaults_of_a_published_template_are_replaced_not_repeated() -> None:
    first = add_defaults(MOOD, {"mood": "calm", "effort": 'x %}{% set a = "'})
    assert add_defaults(first, {"mood": "calm"}) == first
    second = add_defaults(first, {"mood": "loud"})
    assert second.count("mood is not defined") == second.count("effort is not defined") == 1
    assert tokenizer(second).apply_chat_template(TURNS, tokenize=False) == "[loud]"


def test_arguments_in_the_template_stay_visible_to_servers() -> None:
    """vLLM passes only arguments that jinja2.meta finds."""
    from transformers.utils.chat_template_utils import _get_template_variables

    assert "mood" in _get_template_variables(add_defaults(MOOD, {"mood": "calm"}))


def test_arguments_published_tokenizer_renders_as_in_training(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    words = tokenizer()
    settings = build_settings(chatTemplateName="qwen3", chatTemplateArguments={"enable_thinking": "false"})
    apply_template_settings(words, settings)
    words.save_pretrained(tmp_path)
    published = AutoTokenizer.from_pretrained(tmp_path)
    options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True}
    assert list(published.apply_chat_template(TURNS[:1], **options)["input_ids"]) == encode_prompt(words, "2+2?")
    assert "<think>\n\n</think>" in words.decode(encode_prompt(words, "2+2?"))
    masker = LossMasker(words)
    (row,) = masker.tokenize([masker.render(Chat(TURNS))])
    assert list(published.apply_chat_template(TURNS, return_dict=True)["input_ids"]) == row.input_ids
    apply_template_settings(published, build_settings(chatTemplateArguments={"enable_thinking": "false"}))
    assert published.chat_template == words.chat_template, "training again changes nothing"


@pytest.mark.parametrize(
    ("template", "arguments", "problem"),
    {
        "unknown": (MOOD + CHATML, {"mod": "x"}, "the chat template does not read mod; it reads mood"),
        "none": (CHATML, {"mood": "x"}, "the chat template does not read mood; it reads no variable"),
        "messages": (CHATML, {"messages": "x"}, "messages cannot be set: the conversation or the tokenizer defines"),
        "eos_token": (CHATML + "{{ eos_token }}", {"eos_token": "x"}, "eos_token cannot be set"),
        "set in the template": ("{% set mood = 1 %}" + MOOD, {"mood": "x"}, "does not read mood"),
        "no template": (None, {"mood": "x"}, "the tokenizer has no chat template; set model.chatTemplate or"),
    }.values(),
    ids=lambda value: str(value)[:20],
)
def test_arguments_without_effect_are_refused(template: str | None, arguments: dict[str, str], problem: str) -> None:
    message = find_problem(template, chatTemplateArguments=arguments)
    assert message.startswith("model.chatTemplateArguments: ")
    assert problem in message


def test_template_syntax_error_names_the_line() -> None:
    problem = find_problem(chatTemplate="{% for m in %}", chatTemplateArguments={"mood": "x"})
    assert re.fullmatch(r"model.chatTemplate is not a valid Jinja template: .* \(line 1\)", problem)


def test_arguments_of_a_damaged_template_are_a_problem_of_the_model() -> None:
    with pytest.raises(TrainerError, match="the base model's chat template is not a valid Jinja template") as caught:
        apply_template_settings(tokenizer("{% for m in %}"), build_settings(chatTemplateArguments={"mood": "x"}))
    assert caught.value.reason is Reason.MODEL_INVALID


def test_arguments_apply_to_the_default_of_several_templates(tmp_path: Path) -> None:
    words = tokenizer()
    words.chat_template = {"default": MOOD + CHATML, "tool_use": "{{ tools }}"}
    apply_template_settings(words, build_settings(chatTemplateArguments={"mood": "calm"}))
    assert ChatTemplate(words).render(TURNS).startswith("[calm]<|im_start|>")
    assert words.apply_chat_template(TURNS, tools=[], tokenize=False).startswith("[calm]<|im_start|>")


@pytest.mark.parametrize("name", ["llama3_2", "gptoss"])
def test_template_date_is_written_in_rows_and_prompts(name: str) -> None:
    words, day = tokenizer(bos="<|begin_of_text|>"), date(2031, 5, 17)
    words.chat_template = find_bundled_template(name).read_text()
    expected_date = {"llama3_2": "17 May 2031", "gptoss": "2031-05-17"}[name]
    rendered = LossMasker(words, template_date=day).render(Chat(TURNS))
    assert f"date: {expected_date}" in rendered.text.replace("Date", "date")
    assert expected_date in words.decode(encode_prompt(words, "2+2?", day))


def test_template_with_a_constant_date_keeps_it() -> None:
    """Llama 3.1's own template does not ask for the current date, and neither does a server that renders it."""
    words = tokenizer(bos="<|begin_of_text|>")
    words.chat_template = find_bundled_template("llama3_1").read_text()
    text = ChatTemplate(words, date(2031, 5, 17)).render(TURNS)
    assert text == words.apply_chat_template(TURNS, tokenize=False)
    assert "26 Jul 2024" in text
