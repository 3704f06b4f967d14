"""The settings of `model` for the chat template: another template, and values for its variables.

The values are written into the template as defaults, one line for each variable in front of the template:

    {% if enable_thinking is not defined %}{% set enable_thinking = false %}{% endif %}

The template is published like that. So training, evaluation and servers render the same text without passing the
values, and a server whose caller passes another value uses that value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from finetune_trainer.contract import ModelSource, Reason
from finetune_trainer.data.bundled_templates import find_bundled_template
from finetune_trainer.data.chat_template import list_template_variables, template_errors
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Scalar = str | int | float | bool | None
_FIELD = "model.chatTemplateArguments"
_RESERVED_NAMES = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("strftime_now", "raise_exception"),
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        "additional_special_tokens",
    }
)
"""Variables that the conversation, the tokenizer or transformers defines."""
_JINJA_CONSTANTS = {None: "none", True: "true", False: "false"}
# The line break belongs to the line: transformers removes the first one after a block (trim_blocks).
_DEFAULT_LINE = re.compile(r"\{% if (\w+) is not defined %\}\{% set \1 = (.+) %\}\{% endif %\}\n")


def check_template_settings(model: ModelSource) -> None:
    """Raise `CONFIG_INVALID` for settings that are wrong for every tokenizer. Needs no files of the base model."""
    if model.chat_template_name is not None:
        find_bundled_template(model.chat_template_name)
    _reject_reserved_names(model, _RESERVED_NAMES)


def apply_template_settings(tokenizer: PreTrainedTokenizerBase, model: ModelSource) -> None:
    """Give the tokenizer the chat template of the settings, with the arguments as defaults.

    Raises `CONFIG_INVALID` for a template that is not valid, and for arguments that the template does not read, and
    `MODEL_INVALID` if the tokenizer's own template is not valid.
    """
    check_template_settings(model)
    source = _read_template(model)
    if source is not None:
        _check_syntax(tokenizer, source)
        tokenizer.chat_template = source
    if model.chat_template_arguments:
        _reject_reserved_names(model, frozenset(tokenizer.special_tokens_map))
        tokenizer.chat_template = _build_template(tokenizer, model.chat_template_arguments)


def parse_argument(text: str) -> Scalar:
    """Return the value of an argument: a JSON scalar, or else the text itself. Numbers are finite."""
    try:
        value = json.loads(text, parse_constant=_reject_constant)
        _encode_scalar(value)
    except ValueError:
        return text
    is_scalar = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_scalar else text


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # Python reads NaN and Infinity by default


def _encode_scalar(value: object) -> None:
    """Raise `ValueError` for a text with half a surrogate pair, which cannot be written to a file."""
    if isinstance(value, str):
        value.encode()


def add_defaults(source: str, arguments: Mapping[str, Scalar]) -> str:
    """Return the template with the arguments as defaults of its variables.

    Defaults that are already in front of the template are kept, or replaced by the arguments of the same name.
    """
    literals, body = _split_defaults(source)
    literals |= {name: _format_literal(value) for name, value in arguments.items()}
    lines = (
        f"{{% if {name} is not defined %}}{{% set {name} = {literal} %}}{{% endif %}}\n"
        for name, literal in sorted(literals.items())
    )
    return "".join(lines) + body


def _split_defaults(source: str) -> tuple[dict[str, str], str]:
    """Return the defaults in front of a template as Jinja literals by name, and the rest of the template."""
    literals = {}
    while match := _DEFAULT_LINE.match(source):
        literals[match[1]] = match[2]
        source = source[match.end() :]
    return literals, source


def _format_literal(value: Scalar) -> str:
    if value is None or isinstance(value, bool):
        return _JINJA_CONSTANTS[value]
    # Jinja reads the escapes of JSON, but not pairs of them for one character.
    return json.dumps(value, ensure_ascii=False)


def _read_template(model: ModelSource) -> str | None:
    """Return the template that replaces that of the tokenizer, or None."""
    if model.chat_template_name is not None:
        return find_bundled_template(model.chat_template_name).read_text(encoding="utf-8")
    return model.chat_template


def _check_syntax(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    from jinja2 import TemplateSyntaxError

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], chat_template=source, tokenize=False)
    except TemplateSyntaxError as error:
        message = f"model.chatTemplate is not a valid Jinja template: {error.message} (line {error.lineno})"
        raise TrainerError(Reason.CONFIG_INVALID, message) from error
    except template_errors():
        pass  # it may reject this conversation; the rows of the data are checked one by one


def _build_template(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, str]) -> str:
    if not tokenizer.chat_template:
        raise TrainerError(
            Reason.CONFIG_INVALID,
            f"{_FIELD}: the tokenizer has no chat template; set model.chatTemplate or model.chatTemplateName",
        )
    # A tokenizer can have several templates. Rows are rendered with this one, and so it becomes the only one.
    source: str = tokenizer.get_chat_template()
    readable_names = list_template_variables(_split_defaults(source)[1]) - _RESERVED_NAMES
    unknown_names = sorted(arguments.keys() - readable_names)
    if unknown_names:
        readable = f"it reads {', '.join(sorted(readable_names))}" if readable_names else "it reads no variable"
        message = f"{_FIELD}: the chat template does not read {', '.join(unknown_names)}; {readable}"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    return add_defaults(source, {name: parse_argument(text) for name, text in arguments.items()})


def _reject_reserved_names(model: ModelSource, reserved_names: frozenset[str]) -> None:
    names = sorted(reserved_names & model.chat_template_arguments.keys())
    if names:
        message = f"{_FIELD}: {', '.join(names)} cannot be set: the conversation or the tokenizer defines its value"
        raise TrainerError(Reason.CONFIG_INVALID, message)
