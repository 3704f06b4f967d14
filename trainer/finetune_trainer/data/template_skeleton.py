"""Rendering of further versions of a conversation without the chat template, from what it writes around plain turns.

To find the answers of a conversation, `data.answer_spans` renders it with placeholders, and the prompt of an answer.
Most templates write the contents of plain turns as they are, between texts that depend only on the roles. For such a
template these further versions are joined from its skeleton: the texts around the turns of these roles. The skeleton is
used only for conversations whose rendering by the template is equal to the joined text.

In most of them each answer begins where the prompt before it ends. Then the lengths of the texts say where the answers
are, and no further version is needed.
"""

from __future__ import annotations

from itertools import accumulate, chain

from finetune_trainer.data.chat_template import ANSWER_MARK, ChatTemplate, Messages, Span
from finetune_trainer.data.row_types import RowError

_MAX_SKELETONS = 1024
_MAX_LOCATED_ANSWERS = 4
"""Each located answer needs the skeleton of its prompt, so that more of them cost more than the search."""
_PLAIN_KEYS = 2
"""Number of keys of a turn that has only a role and a content."""
_Key = tuple[bool, tuple[str, ...]]
"""Whether a generation prompt follows, and the roles of the turns."""


class TemplateSkeletons:
    """The skeletons of one chat template by roles, which are rendered when they are first needed."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._skeletons: dict[_Key, list[str] | None] = {}
        self._answer_turns: dict[tuple[str, ...], list[int] | None] = {}
        """Indices of the answers by the roles of the turns, or None if they are to be searched for."""

    def fits(self, messages: Messages, text: str) -> bool:
        """Return whether `text`, a conversation without tools as the template renders it, equals the joined text.

        Contents with whitespace around them do not fit, because templates may trim them in some places only.
        """
        is_plain = all(len(message) == _PLAIN_KEYS and _is_trimmed(message["content"]) for message in messages)
        return is_plain and self._join(messages, self._get_skeleton(messages, add_generation_prompt=False)) == text

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str | None:
        """Return a version of a conversation that fits: the first turns of it, or with other contents.

        The result is None if the template rejects turns of these roles, or does not write them as they are.
        """
        return self._join(messages, self._get_skeleton(messages, add_generation_prompt=add_generation_prompt))

    def locate_answers(self, messages: Messages, text: str) -> list[Span] | None:
        """Return the span of each answer in the text of a conversation that fits.

        The result is None if an answer may begin before or after its content, or contains the mark of answers.
        """
        roles = tuple([message["role"] for message in messages])
        if roles not in self._answer_turns and len(self._answer_turns) < _MAX_SKELETONS:
            self._answer_turns[roles] = self._list_answers_after_prompts(messages)
        turns, skeleton = self._answer_turns.get(roles), self._get_skeleton(messages, add_generation_prompt=False)
        if turns is None or skeleton is None or ANSWER_MARK in text:
            return None
        contents = [message["content"] for message in messages]
        borders = list(accumulate(map(len, chain.from_iterable(zip(skeleton, contents, strict=False)))))
        return [(borders[2 * turn], borders[2 * turn + 1]) for turn in turns]

    def _list_answers_after_prompts(self, messages: Messages) -> list[int] | None:
        """Return the turns of the assistant, or None if one does not begin exactly where the prompt before it ends.

        The template must also write the same before all of them, and the results of tools are left to the search.
        """
        roles = [message["role"] for message in messages]
        turns = [index for index, role in enumerate(roles) if role == "assistant"]
        skeleton = self._get_skeleton(messages, add_generation_prompt=False)
        if skeleton is None or "tool" in roles or len(turns) > _MAX_LOCATED_ANSWERS:
            return None
        later_turns = [turn for turn in turns if turn > 0]
        prompts = [self._get_skeleton(messages[:turn], add_generation_prompt=True) for turn in later_turns]
        if prompts != [skeleton[: turn + 1] for turn in later_turns]:
            return None
        if len(turns) > 1:
            conversation = self._get_skeleton(messages[: turns[-1]], add_generation_prompt=False)
            is_prompt_longer = conversation is not None and conversation[:-1] == skeleton[: turns[-1]]
            if not is_prompt_longer or len({skeleton[turn] for turn in later_turns}) > 1:
                return None
        return turns

    def _get_skeleton(self, messages: Messages, *, add_generation_prompt: bool) -> list[str] | None:
        key = add_generation_prompt, tuple([message["role"] for message in messages])
        if key not in self._skeletons:
            if len(self._skeletons) == _MAX_SKELETONS:
                return None
            self._skeletons[key] = self._render_skeleton(messages, add_generation_prompt=add_generation_prompt)
        return self._skeletons[key]

    def _render_skeleton(self, messages: Messages, *, add_generation_prompt: bool) -> list[str] | None:
        """Return the texts around the contents, if the template renders these turns like the joined text."""
        marks = [f"{ANSWER_MARK}{number:06d}" for number in range(len(messages))]
        marked_messages = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
        try:
            rest = self._template.render(marked_messages, add_generation_prompt=add_generation_prompt)
            text = self._template.render(messages, add_generation_prompt=add_generation_prompt)
        except RowError:
            return None
        skeleton = []
        for mark in marks:
            piece, _, rest = rest.partition(mark)
            skeleton.append(piece)
        skeleton.append(rest)
        return skeleton if self._join(messages, skeleton) == text and ANSWER_MARK not in "".join(skeleton) else None

    @staticmethod
    def _join(messages: Messages, skeleton: list[str] | None) -> str | None:
        if skeleton is None:
            return None
        contents = [message["content"] for message in messages]
        return "".join(chain.from_iterable(zip(skeleton, [*contents, ""], strict=True)))


def _is_trimmed(content: str) -> bool:
    return bool(content) and not content[0].isspace() and not content[-1].isspace()
