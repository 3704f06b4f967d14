"""A model's chat template: conversations as text, in transformers' own sandbox."""

from __future__ import annotations

import re
from functools import cache, cached_property
from typing import TYPE_CHECKING

from finetune_trainer.data.row_types import RowError

if TYPE_CHECKING:
    import jinja2
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
Span = tuple[int, int]
"""Characters of a text: the first, and the one after the last."""
ANSWER_MARK = "answer0f1e2d3c4b5a"
"""Stands for an answer in a conversation that is rendered to see what the template writes around answers."""
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplate:
    """The template of a tokenizer that has one; `marks` if it says itself what the assistant writes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._source: str = tokenizer.get_chat_template()
        self._variables = {**tokenizer.special_tokens_map, "tools": None, "documents": None}
        self.has_generation_tags = _GENERATION_TAG.search(self._source) is not None

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """The conversation as text; with `prompt` up to where the assistant answers. Raises `RowError`."""
        try:
            return self._compiled_template.render(
                self._variables, messages=messages, add_generation_prompt=add_generation_prompt
            )
        except template_errors() as error:
            raise _convert_error(error) from error

    def render_with_spans(self, messages: Messages) -> tuple[str, list[Span]]:
        """The conversation as text, and the ranges that the template marks. Raises `RowError`."""
        # apply_chat_template returns a mask of tokens instead of ranges, and marks the whole rest of the conversation
        # when a range ends in a character that no token covers (a space, under ByteLevel's trim_offsets).
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                chat_template=self._source,
                return_assistant_tokens_mask=True,
                **self._variables,
            )
        except template_errors() as error:
            raise _convert_error(error) from error
        return texts[0], spans[0]

    @cached_property
    def _compiled_template(self) -> jinja2.Template:
        """What transformers renders, in its sandbox, without what it does around each rendering."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        template: jinja2.Template = _compile_jinja_template(self._source)
        # jinja copies them for each rendering; from a ChainMap, as they are, that takes a third of a short one's time.
        template.globals = dict(template.globals)
        return template


def _convert_error(error: Exception) -> RowError:
    return RowError(f"the model's chat template refuses it: {error}")


@cache
def template_errors() -> tuple[type[Exception], ...]:
    """What a chat template can raise."""
    from jinja2 import TemplateError

    # All but the first from Python's own operators and methods inside a template, and from the sandbox's limits.
    return (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
