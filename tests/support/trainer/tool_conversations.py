"""Conversations with tool calls and reasoning, and tokenizers with the control tokens of a chat template."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.support.trainer.chat_template_families import TemplateFamily
from tests.support.trainer.tiny_model import import_libraries

from finetune_trainer.data.row_types import Chat, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
RESULT = '{"celsius": 20}'
# Mistral's template asks for a call before each result, and writes the tools before the last question.
MISTRAL_WITH_TOOLS = (
    "{{ bos_token }}{% set questions = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% if tools and m == questions[-1] %}"
    "[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}]"
    "{{ eos_token }}{% elif m.role == 'tool' %}{% if not messages[loop.index0 - 1].tool_calls %}"
    "{{ raise_exception('a result must follow a call') }}{% endif %}"
    '[TOOL_RESULTS] {"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
_CONTROL_TOKEN = re.compile(
    r"<[|\uff5c][^<>\s'\"{}]{1,40}[|\uff5c]>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_turn>|\[/?[A-Z_]{4,16}\]"
)


def build_call(**arguments: Any) -> dict[str, Any]:
    """Return a call of the tool. The identifier is one that Mistral's template accepts."""
    return {"type": "function", "id": "call00001", "function": {"name": "get_weather", "arguments": arguments}}


def build_answer(content: str, **extras: Any) -> Message:
    """Return a turn of the assistant, with `tool_calls` or `reasoning_content`."""
    return {"role": "assistant", "content": content, **extras}


def build_result(content: str = RESULT) -> Message:
    """Return the result of the call."""
    return {"role": "tool", "content": content, "tool_call_id": "call00001", "name": "get_weather"}


def build_tool_chat() -> Chat:
    """Return a conversation with two questions, each with a call, its result and an answer."""
    turns = [
        {"role": "user", "content": "Weather in Rome?"},
        build_answer("", tool_calls=[build_call(city='Rome "north"')]),
        build_result(),
        build_answer("It is warm."),
        {"role": "user", "content": "And in Oslo?"},
        build_answer("", tool_calls=[build_call(city="Oslo", days=5, exact=True)]),
        build_result('{"celsius": 3}'),
        build_answer("It is cold."),
    ]
    return Chat(turns, [TOOL])


def read_template(name: str) -> str:
    """Return a chat template of TRL."""
    import_libraries()
    from trl import chat_template_utils

    template: str = vars(chat_template_utils)[f"{name}_chat_template"]
    return template


def build_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the template and its control tokens as special tokens."""
    return TemplateFamily(
        template, special_tokens=tuple(sorted(set(_CONTROL_TOKEN.findall(template))))
    ).build_tokenizer()
