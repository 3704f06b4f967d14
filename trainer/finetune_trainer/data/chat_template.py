"""Rendering of conversations with the chat template of a tokenizer, in the sandbox of transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.data.row_types import Message, TemplateRejectionError, ToolDefinition
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import jinja2
    from transformers import PreTrainedTokenizerBase

Messages = list[Message]
Span = tuple[int, int]
"""Range of characters in a text: start, and exclusive end."""
ANSWER_MARK = "answer0f1e2d3c4b5a"
"""Placeholder for an answer, to find out what the template writes around answers."""
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
DATE_FUNCTION = "strftime_now"
"""Name of the function with which chat templates write the current date, as those of Llama 3 and gpt-oss do."""


def build_date_variables(template_date: date | None) -> dict[str, Callable[[str], str]]:
    """Return the variables with which a template writes this date as the current one. None: it writes today's date."""
    return {} if template_date is None else {DATE_FUNCTION: template_date.strftime}


def can_write_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer has a chat template that writes the current date, at least for some conversations.

    Templates with a `date_string` either take it from the same function, or have a constant date.
    """
    return bool(tokenizer.chat_template) and DATE_FUNCTION in tokenizer.get_chat_template()


class ChatTemplate:
    """Chat template of a tokenizer. `has_generation_tags` says whether it marks the text of the assistant itself.

    It writes `template_date` as the current date, or today's date if that is None. Raises `MODEL_INVALID` if it is not
    a Jinja template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_date: date | None = None) -> None:
        self._source: str = tokenizer.get_chat_template()
        self._variables = {
            **tokenizer.special_tokens_map,
            "tools": None,
            "documents": None,
            **build_date_variables(template_date),
        }
        self.has_generation_tags = _GENERATION_TAG.search(self._source) is not None
        self._compiled_template = _compile_template(self._source)

    def render(
        self, messages: Messages, tools: Sequence[ToolDefinition] = (), *, add_generation_prompt: bool = False
    ) -> str:
        """Return the conversation as text, followed by the header of an answer if `add_generation_prompt`.

        Raises `RowError` if the template rejects the conversation.
        """
        try:
            return self._compiled_template.render(
                self._variables, messages=messages, tools=tools or None, add_generation_prompt=add_generation_prompt
            )
        except template_errors() as error:
            raise _convert_error(error) from error

    def render_with_spans(self, messages: Messages, tools: Sequence[ToolDefinition] = ()) -> tuple[str, list[Span]]:
        """Return the conversation as text, and the spans that the template marks with `{% generation %}`.

        Raises `RowError` if the template rejects the conversation.
        """
        # apply_chat_template returns a token mask instead of spans, and marks the rest of the conversation if a span
        # ends in a character that no token covers (a space, with ByteLevel's trim_offsets).
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                chat_template=self._source,
                return_assistant_tokens_mask=True,
                **{**self._variables, "tools": tools or None},
            )
        except template_errors() as error:
            raise _convert_error(error) from error
        return texts[0], spans[0]


def list_template_variables(source: str) -> frozenset[str]:
    """Return the variables that a chat template reads and does not always set itself.

    Raises `MODEL_INVALID` if it is not a Jinja template.
    """
    from jinja2.meta import find_undeclared_variables

    environment = _compile_template(source).environment  # knows the tag `generation`
    return frozenset(find_undeclared_variables(environment.parse(source)))


def _compile_template(source: str) -> jinja2.Template:
    """Return the template as transformers compiles it, without what transformers repeats for each rendering."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        template: jinja2.Template = _compile_jinja_template(source)
    except TemplateSyntaxError as error:
        raise TrainerError(
            Reason.MODEL_INVALID,
            f"the base model's chat template is not a valid Jinja template: {error.message} (line {error.lineno}); "
            "correct it, or set model.chatTemplate to another template",
        ) from error
    # Jinja copies the globals for each rendering. Copying a ChainMap takes a third of a short rendering.
    template.globals = dict(template.globals)
    return template


def _convert_error(error: Exception) -> TemplateRejectionError:
    return TemplateRejectionError(f"the model's chat template rejects it: {error}")


@cache
def template_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a chat template can raise."""
    from jinja2 import TemplateError

    # All but the first come from Python operators and methods inside a template, and from the sandbox's limits.
    return (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
