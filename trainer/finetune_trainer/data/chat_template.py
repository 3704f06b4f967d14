"""Rendering of conversations with the chat template of a tokenizer, in the sandbox of transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
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
_RENDERING_DATE = datetime(2026, 1, 1)


def format_rendering_date(pattern: str) -> str:
    """Return the date that templates write as the current one: 1 January 2026, so that a run trains the same tokens on
    every day. `pattern` is that of `strftime`."""
    return _RENDERING_DATE.strftime(pattern)


class ChatTemplate:
    """Chat template of a tokenizer. `has_generation_tags` says whether it marks the text of the assistant itself.

    Raises `MODEL_INVALID` if it is not a Jinja template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._source: str = tokenizer.get_chat_template()
        self._variables = {
            **tokenizer.special_tokens_map,
            "tools": None,
            "documents": None,
            DATE_FUNCTION: format_rendering_date,
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
