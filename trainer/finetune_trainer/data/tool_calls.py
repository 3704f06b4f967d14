"""Parsing of tool calls and definitions of tools, in the forms that OpenAI, transformers and ShareGPT data have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from finetune_trainer.data.readers.json_rows import describe_type
from finetune_trainer.data.row_columns import RowColumns, format_value, is_empty
from finetune_trainer.data.row_types import RowError, ToolDefinition

ToolCall = dict[str, Any]
"""A call as in `row_types.Message`."""
_TOOL_COLUMNS = ("tools", "functions", "input.tools", "input.functions")


def parse_tools(row: RowColumns) -> list[ToolDefinition]:
    """Return the definitions of the tools of a row. Raises `RowError`."""
    name = next((column for column in _TOOL_COLUMNS if row.has(column)), None)
    if name is None:
        return []
    tools = parse_json(name, row.get(name))
    if tools is None:  # the text null, as in CSV files
        return []
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list):
        raise RowError(f"expected '{name}' to be a list of functions, found {describe_type(tools)}")
    return [_parse_tool(f"{name}[{index}]", tool) for index, tool in enumerate(tools)]


def _parse_tool(name: str, value: object) -> ToolDefinition:
    tool = parse_json(name, value)
    if not isinstance(tool, dict):
        raise RowError(f"expected {name} to be a function with a name, found {format_value(tool)}")
    if tool.get("type") not in ("function", "", None):
        raise RowError(f"expected {name}.type to be function, found {format_value(tool['type'])}")
    function = tool.get("function")
    if not isinstance(function, dict):
        function = {key: item for key, item in tool.items() if key != "type"}
        tool = {"function": function}
    if not _is_name(function.get("name")):
        raise RowError(f"expected {name} to be a function with a name, found {format_value(function.get('name'))}")
    _check_keys(name, tool, ("type", "function"))
    definition = _drop_nulls(function)
    if isinstance(definition.get("parameters"), str):
        definition["parameters"] = parse_object(f"{name}.parameters", definition["parameters"])
    return {"type": "function", "function": definition}


def parse_tool_calls(name: str, value: object) -> list[ToolCall]:
    """Return the calls of a turn. `value` is a list of calls, one call, or either as JSON. Raises `RowError`."""
    calls = parse_json(name, value)
    if isinstance(calls, dict):
        return [_parse_tool_call(name, calls)]
    if not isinstance(calls, list) or not calls:
        raise RowError(f"expected {name} to be a list of tool calls, found {describe_type(calls)}")
    return [_parse_tool_call(f"{name}[{index}]", call) for index, call in enumerate(calls)]


def find_written_calls(text: str, tools: Sequence[ToolDefinition]) -> list[ToolCall] | None:
    """Return the calls of an answer that is the JSON of one or more `{"name": …, "arguments": …}`, or None.

    They call the given tools. Raises `RowError` if their arguments are not an object.
    """
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    calls = value if isinstance(value, list) else [value]
    names = [tool["function"]["name"] for tool in tools]
    are_calls = all(
        isinstance(call, dict) and call.keys() == {"name", "arguments"} and call["name"] in names for call in calls
    )
    return parse_tool_calls("the answer", calls) if calls and are_calls else None


def _parse_tool_call(name: str, value: object) -> ToolCall:
    call = parse_json(name, value)
    if not isinstance(call, dict):
        raise RowError(f"expected {name} to be a tool call, found {describe_type(call)}")
    function = call.get("function")
    if not isinstance(function, dict):
        call, function = _split_bare_call(call)
    if not _is_name(function.get("name")):
        raise RowError(f"expected {name} to name a function, found {format_value(function.get('name'))}")
    _check_keys(name, call, ("id", "type", "function"))
    _check_keys(f"{name}.function", function, ("name", "arguments"))
    if call.get("type") not in ("function", "", None):
        raise RowError(f"expected {name}.type to be function, found {format_value(call['type'])}")
    if not isinstance(call.get("id"), str | None):
        raise RowError(f"expected {name}.id to be text, found {describe_type(call['id'])}")
    arguments = parse_object(f"{name}.function.arguments", function.get("arguments"))
    identifier = {"id": call["id"]} if call.get("id") else {}
    return {"type": "function", **identifier, "function": {"name": function["name"], "arguments": arguments}}


def _split_bare_call(call: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a call without `function`, `{"name": …, "arguments": …}`, as its outer and its inner object."""
    outer = {key: value for key, value in call.items() if key not in ("name", "arguments")}
    return outer, {key: call[key] for key in ("name", "arguments") if key in call}


def _check_keys(name: str, value: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(key for key, item in value.items() if key not in known and not is_empty(item))
    if unknown:
        raise RowError(f"expected {name} to have {', '.join(known)}, found also {', '.join(map(repr, unknown[:5]))}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def parse_object(name: str, value: object) -> dict[str, Any]:
    """Return an object that is written as an object or as JSON. An empty value is an empty object. Raises `RowError`.

    Keys without a value are left out of objects, because Arrow adds them to give all rows the same keys. In JSON text
    they are kept.
    """
    if is_empty(value):
        return {}
    parsed = parse_json(name, value)
    if not isinstance(parsed, dict):
        raise RowError(f"expected {name} to be an object, found {describe_type(parsed)}")
    return parsed if isinstance(value, str) else _drop_nulls(parsed)


def parse_json(name: str, value: object) -> object:
    """Return the value, parsed if it is JSON text. Raises `RowError` for other text."""
    if not isinstance(value, str):
        return value
    try:
        parsed: object = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        hint = "; write lists as JSON (json.dumps), not as Python prints them" if value.startswith("[{'") else ""
        raise RowError(f"expected {name} to be JSON, found {format_value(value)} ({error}){hint}") from error
    return parsed


def _drop_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {key: _drop_nested_nulls(item) for key, item in value.items() if item is not None}


def _drop_nested_nulls(value: object) -> object:
    if isinstance(value, dict):
        return _drop_nulls(value)
    return [_drop_nested_nulls(item) for item in value] if isinstance(value, list) else value
