"""The columns of one row, and which of them a format uses, so that no column is ignored silently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.contract.dataset import FieldName
from finetune_trainer.data.field_suggestions import COMPLETION_NAMES, suggest_fields
from finetune_trainer.data.readers.json_rows import describe_type
from finetune_trainer.data.row_types import RowError

_OPTIONAL_FIELDS = ("system", "input", "tools", "history")
MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
"""Columns of multimodal datasets, whose rows are not complete without them."""
_CONTEXT_COLUMNS = ("tools", "functions", "history", "system", *MEDIA_COLUMNS)
"""Columns with a part of the conversation."""
PAIR_COLUMNS = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_completion", "non_preferred_completion"),
)
"""Columns of a preferred and a rejected answer: TRL's names, those of OpenAI's guide, and of OpenAI's API schema."""
_CONVERSATION_COLUMNS = (
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "label",
    "reasoning_content",
    "reasoning",
    "thinking",
    "documents",
    "chat_template_kwargs",
    *(name for pair in PAIR_COLUMNS for name in pair),
)
"""Columns with a conversation, a part of it, or a label. `text` is not listed: beside a conversation it is usually a
rendered copy."""
SYSTEM_NAMES = ("system_prompt", "system_message", "system_instruction", "systemInstruction", "systemPrompt")
_OTHER_NAMES = {**dict.fromkeys(SYSTEM_NAMES, "system"), "context": "input", "passage": "input"}
"""Names that columns with a part of the conversation often have, and the fields that they fit."""


def is_empty(value: object) -> bool:
    """Return whether a value says nothing, as the empty columns and keys that OpenAI's SDK and Arrow write."""
    return not value and (value is None or value in ("", [], {}))


@dataclass(slots=True)
class RowColumns:
    """The columns of one row by the names of the formats. It records the columns that a parser reads."""

    values: Mapping[str, Any]
    source_names: Mapping[str, str] = field(default_factory=dict)
    """Name in the data of each column that `fields` renames."""
    replaced: tuple[str, ...] = ()
    """Filled columns of the data whose name `fields` gives to another column."""
    item_fields: frozenset[str] = frozenset()
    """Columns that graders read, whether or not the format uses them."""
    _read: set[str] = field(default_factory=set)
    _unused_keys: dict[str, None] = field(default_factory=dict)
    """Names of the keys of turns that the parser does not use, in order, such as `messages[].id`."""

    def has(self, name: str) -> bool:
        """Return whether the row has the column and its value is not empty."""
        return not is_empty(self.values.get(name))

    def get(self, name: str) -> object:
        """Return the value of a column, or None if the row does not have it or it is empty."""
        self._read.add(name)
        value = self.values.get(name)
        return None if is_empty(value) else value

    def require(self, name: str) -> object:
        """Return the value of a required column, which may be empty. Raises `RowError` if there is no such column."""
        if name not in self.values:
            raise RowError(f"expected '{name}', found {format_keys(self.values)}")
        self._read.add(name)
        return self.values[name]

    def expand(self, name: str) -> None:
        """Replace a column that is an object by one column for each of its keys, such as `input.messages`."""
        self.values = _expand_object(self.values, name)

    def record_unused_keys(self, name: str, keys: Iterable[str]) -> None:
        """Record keys of the turns in a column that the parser does not use."""
        for key in keys:
            self._unused_keys[f"{self.source_names.get(name, name)}[].{key}"] = None

    def is_read(self, name: str) -> bool:
        """Return whether the parser read the column, whether the row has it or not."""
        return name in self._read

    def list_read_values(self) -> list[object]:
        """Return the values of the columns that the parser read."""
        return [value for name, value in self.values.items() if name in self._read]

    def list_unused_keys(self) -> list[str]:
        """Return the names of the filled keys of turns that the parser does not use."""
        return list(self._unused_keys)

    @property
    def is_plain_text(self) -> bool:
        """Whether the parser read `text` and no other column with a conversation."""
        return "text" in self._read

    def list_unread(self) -> list[str]:
        """Return the names of the filled columns that neither the parser nor a grader reads."""
        used = self._read | self.item_fields
        return [name for name, value in self.values.items() if name not in used and not is_empty(value)]


def rename_columns(
    row: Mapping[str, Any], fields: Mapping[FieldName, str], item_fields: Iterable[str] = ()
) -> RowColumns:
    """Rename columns to the names of the formats, using `fields`. Raises `RowError` if a column is missing."""
    graded = frozenset(item_fields)
    if not fields:
        return RowColumns(row, item_fields=graded)
    source_names = set(fields.values())
    for source in source_names - row.keys():
        row = _expand_object(row, source.partition(".")[0])
    renamed_row = {key: value for key, value in row.items() if key not in source_names}
    replaced: list[str] = []
    for name, source in fields.items():
        if source in row:
            replaced += [name] if not is_empty(renamed_row.get(name)) else []
            renamed_row[name] = row[source]
        elif name not in _OPTIONAL_FIELDS:
            raise RowError(f"expected the column {source!r} (fields: {name}), found {format_keys(row)}")
    return RowColumns(renamed_row, {str(name): source for name, source in fields.items()}, tuple(replaced), graded)


def _expand_object(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Replace a column that is an object by one column for each of its keys, such as `translation.en`."""
    value = row.get(name)
    if not isinstance(value, dict):
        return row
    others = {key: item for key, item in row.items() if key != name}
    return others | {f"{name}.{key}": item for key, item in value.items()}


def list_unused_columns(
    columns: RowColumns, row_format: str, texts: Iterable[str], *, is_detected: bool = True
) -> list[str]:
    """Return the filled columns and keys of turns that the format does not use.

    `texts` are the texts of the parsed row. If the user set the format, so that it is not detected, the other
    conversations of a row are not meant. Raises `RowError` if the user named one of the columns in `fields`, or if one
    contains a part of the conversation.
    """
    unread = columns.list_unread()
    for name in unread:
        if name in columns.source_names:
            _reject_named_column(name, columns)
        if _get_base_name(name) in _CONTEXT_COLUMNS:
            _reject_context(name)
    if is_detected:
        conversations = [name for name in unread if _is_conversation(name, columns)]
        _reject_conversations(conversations, columns, texts, row_format)
    return [*unread, *columns.replaced, *columns.list_unused_keys()]


def _is_conversation(name: str, columns: RowColumns) -> bool:
    """Return whether a column contains a part of a conversation, or a label."""
    if columns.is_plain_text and name in COMPLETION_NAMES:
        return True
    if name in _OTHER_NAMES:
        field_name = _OTHER_NAMES[name]
        return field_name == "system" or (columns.is_read(field_name) and not columns.has(field_name))
    return _get_base_name(name) in _CONVERSATION_COLUMNS


def _get_base_name(name: str) -> str:
    """Return the name of a column without that of the object that contains it."""
    return name.rpartition(".")[2]


def _reject_named_column(name: str, columns: RowColumns) -> None:
    source = columns.source_names[name]
    raise RowError(
        f"has a column that its format does not use: {source!r} (fields: {name}); remove {name} from fields, or set "
        "the format that uses it"
    )


def _reject_context(name: str) -> None:
    if name in MEDIA_COLUMNS:
        raise RowError(f"has {name!r}; only text can be trained on, so remove such rows or the column")
    raise RowError(f"has {name!r}, which its format does not use; remove the column, or use a format that has it")


def _reject_conversations(names: list[str], columns: RowColumns, texts: Iterable[str], row_format: str) -> None:
    """Raise `RowError` for a column with a part of a conversation, unless it repeats texts of the row."""
    if not names:
        return
    row_text = "\n".join(texts)
    for name in names:
        value = columns.values[name]
        is_repeated = all(isinstance(text, str) and text.strip() in row_text for text in _list_leaves(value))
        if not is_repeated and not _is_rendered_copy(value, columns):
            suggestion = _suggest_use(name, columns)
            raise RowError(
                f"has {name!r} in addition to the columns of its format, and would be trained without it; remove the "
                f"column, or set the format of the source to ignore it (format: {row_format})"
                f"{suggestion and f'{suggestion} to train on it'}"
            )


def _is_rendered_copy(value: object, columns: RowColumns) -> bool:
    """Return whether a value is one text with the prompt and the answer of the row, such as a filled template."""
    if columns.is_plain_text or not isinstance(value, str):
        return False
    return all(isinstance(text, str) and text.strip() in value for text in _list_leaves(columns.list_read_values()))


def _suggest_use(name: str, columns: RowColumns) -> str:
    """Return the end of a message that suggests `fields` with which the column is used, or an empty text."""
    if columns.is_plain_text:
        value = columns.values[name]
        is_number = isinstance(value, int | float)
        pair = {"text": columns.values["text"], name: str(value) if is_number else value}
        suggestion = suggest_fields(pair, ("prompt", "completion"))
        return f"; write it as text, and{suggestion[1:]}" if suggestion and is_number else suggestion
    return f"; set fields: {{{_OTHER_NAMES[name]}: {name}}}" if name in _OTHER_NAMES else ""


def _list_leaves(value: object) -> list[object]:
    """Return the texts and other values of a column, without the roles of its turns."""
    if isinstance(value, list):
        return [leaf for item in value for leaf in _list_leaves(item)]
    if isinstance(value, dict):
        return [leaf for key, item in value.items() if key not in ("role", "from") for leaf in _list_leaves(item)]
    return [] if is_empty(value) else [value]


def format_keys(row: Mapping[str, Any]) -> str:
    """Return the keys of a row for an error message."""
    names = [name for key, value in row.items() for name in _list_names(key, value)]
    return ", ".join(map(format_value, names[:8])) or "no keys"


def _list_names(key: str, value: object) -> list[str]:
    return [f"{key}.{name}" for name in value] if value and isinstance(value, dict) else [key]


def format_value(value: object) -> str:
    """Return a short description of a value for an error message."""
    return repr(value[:40]) if isinstance(value, str) else describe_type(value)
