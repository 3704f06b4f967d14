"""Tool calls and definitions of tools in the forms that data has them, and in the form that chat templates read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import import_libraries, tokenizer

from finetune_trainer.data.row_columns import RowColumns
from finetune_trainer.data.row_types import Chat, RowError
from finetune_trainer.training.methods import METHODS

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
USER = {"role": "user", "content": "weather?"}
ANSWER = {"role": "assistant", "content": "It is 20 degrees."}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
RESULT = {"role": "tool", "content": "20"}


def parse(row: dict[str, Any]) -> Chat:
    schema = METHODS["sft"]
    chat = schema.parse_row(RowColumns(row), schema.detect_format(row))[0]
    assert isinstance(chat, Chat)
    return chat


def parse_call(**keys: Any) -> dict[str, Any]:
    turns = [USER, {"role": "assistant", "content": None, **keys}, RESULT, ANSWER]
    return parse({"messages": turns}).messages[1]


@pytest.mark.parametrize(
    "arguments", [{"city": "Rome"}, '{"city": "Rome"}', {"city": "Rome", "unit": None}], ids=["object", "JSON", "Arrow"]
)
def test_tool_calls_arguments_become_an_object(arguments: object) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    assert parse_call(tool_calls=[call]) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{**CALL, "id": "c1"}],
    }


def test_tool_calls_null_argument_in_json_text_is_kept() -> None:
    call = parse_call(tool_calls=[{"name": "f", "arguments": '{"unit": null}'}])["tool_calls"][0]
    assert call["function"]["arguments"] == {"unit": None}


@pytest.mark.parametrize(
    "keys",
    [
        {"function_call": {"name": "get_weather", "arguments": '{"city": "Rome"}'}},
        {"tool_calls": [{"name": "get_weather", "arguments": {"city": "Rome"}}]},
        {"tool_calls": json.dumps([CALL])},
    ],
    ids=["function_call", "bare call", "JSON text"],
)
def test_tool_calls_other_forms_are_normalized(keys: dict[str, Any]) -> None:
    assert parse_call(**keys)["tool_calls"] == [CALL]


def test_tool_calls_without_arguments_have_an_empty_object() -> None:
    assert parse_call(tool_calls=[{"name": "f", "arguments": ""}])["tool_calls"][0]["function"]["arguments"] == {}


def test_tool_result_keeps_its_id_and_name() -> None:
    turns = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "function", "name": "get_weather", "tool_call_id": "c1", "content": "20"},
        ANSWER,
    ]
    expected = {"role": "tool", "content": "20", "tool_call_id": "c1", "name": "get_weather"}
    assert parse({"messages": turns}).messages[2] == expected


@pytest.mark.parametrize("roles", [("function_call", "observation"), ("tool_call", "function_response")], ids=str)
@pytest.mark.parametrize("is_list", [False, True], ids=["one call", "list of calls"])
def test_sharegpt_function_turns_are_calls_and_results(roles: tuple[str, str], is_list: bool) -> None:
    call = {"name": "get_weather", "arguments": {"city": "Rome"}}
    turns = [("human", "weather?"), (roles[0], json.dumps([call] if is_list else call)), (roles[1], "20")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns], "tools": json.dumps([FUNCTION])}
    row["conversations"].append({"from": "gpt", "value": "It is 20 degrees."})
    assert parse(row) == Chat(
        [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT, ANSWER], [TOOL]
    )


WRONG_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "arguments are no JSON": (
        {"tool_calls": [{"function": {"name": "f", "arguments": "{city: Rome}"}}]},
        "messages[1].tool_calls[0].function.arguments to be JSON, found '{city: Rome}'",
    ),
    "arguments are a list": (
        {"tool_calls": [{"name": "f", "arguments": "[1]"}]},
        "messages[1].tool_calls[0].function.arguments to be an object, found a list",
    ),
    "no name": ({"tool_calls": [{"function": {"arguments": "{}"}}]}, "messages[1].tool_calls[0] to name a function"),
    "another type": (
        {"tool_calls": [{"type": "custom", "function": {"name": "f"}}]},
        "messages[1].tool_calls[0].type to be function, found 'custom'",
    ),
    "unknown key": (
        {"tool_calls": [{"name": "f", "arguments": {}, "thought_signature": "x"}]},
        "messages[1].tool_calls[0] to have id, type, function, found also 'thought_signature'",
    ),
    "both forms": (
        {"tool_calls": [CALL], "function_call": CALL["function"]},
        "tool_calls or function_call, found both",
    ),
    "a number": ({"tool_calls": 1}, "messages[1].tool_calls to be a list of tool calls, found a number"),
}


@pytest.mark.parametrize(("keys", "expected_message"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_tool_calls_invalid_names_its_place(keys: dict[str, Any], expected_message: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_call(**keys)
    assert expected_message in str(caught.value)


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"tools": [json.dumps(TOOL)]},
        {"tools": [FUNCTION]},
        {"tools": [{"type": "function", **FUNCTION}]},
        {"functions": [FUNCTION]},
        {"tools": [{"type": "function", "function": {**FUNCTION, "strict": None}}]},
        {"tools": TOOL},
    ],
    ids=["list", "JSON text", "list of JSON texts", "functions", "flat", "functions column", "Arrow", "one tool"],
)
def test_tools_forms_are_normalized(columns: dict[str, Any]) -> None:
    assert parse({"messages": [USER, ANSWER], **columns}).tools == [TOOL]


@pytest.mark.parametrize(
    ("tools", "expected_message"),
    [
        ("get_weather(city)", "expected tools to be JSON, found 'get_weather(city)'"),
        ([{"type": "web_search"}], "expected tools[0].type to be function, found 'web_search'"),
        ([{"function": {"description": "x"}}], "expected tools[0] to be a function with a name"),
        ([{**TOOL, "cache": 1}], "expected tools[0] to have type, function, found also 'cache'"),
        (3, "expected 'tools' to be a list of functions, found a number"),
    ],
)
def test_tools_invalid_names_its_place(tools: object, expected_message: str) -> None:
    with pytest.raises(RowError) as caught:
        parse({"messages": [USER, ANSWER], "tools": tools})
    assert expected_message in str(caught.value)


@pytest.mark.parametrize("columns", [{"tools": "[]"}, {"tools": []}, {"tools": None}, {"functions": ""}], ids=str)
def test_tools_empty_means_none(columns: dict[str, Any]) -> None:
    assert parse({"messages": [USER, ANSWER], **columns}) == Chat([USER, ANSWER])


@pytest.mark.parametrize("family", ["qwen3", "llama3_1", "glm4moe", "gptoss", "gemma4"])
def test_parsed_calls_are_rendered_by_the_template_of(family: str) -> None:
    """Oracle: the templates that TRL has of the families, rendered by transformers."""
    import_libraries()
    import trl

    template = (Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja").read_text()
    turn = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", **CALL}]}
    chat = parse({"messages": [USER, turn, {**RESULT, "tool_call_id": "c1"}, ANSWER], "tools": json.dumps([FUNCTION])})
    text = tokenizer().apply_chat_template(chat.messages, tools=chat.tools, chat_template=template, tokenize=False)
    assert all(word in text for word in ("Weather of a city", "get_weather", "Rome", "It is 20 degrees."))
    assert '\\"city\\"' not in text  # arguments as JSON in JSON
