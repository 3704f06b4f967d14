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
_MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
"""Columns of multimodal datasets, whose rows are not complete without them."""
_CONTEXT_COLUMNS = ("tools", "functions", "history", "system", *_MEDIA_COLUMNS)
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
    *(name for pair in PAIR_COLUMNS for name in pair),
)
"""Columns with a conversation or a label. `text` is not listed: beside a conversation it is usually a rendered copy."""


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
    _read: set[str] = field(default_factory=set)

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
        value = self.values.get(name)
        if isinstance(value, dict):
            others = {key: item for key, item in self.values.items() if key != name}
            self.values = others | {f"{name}.{key}": item for key, item in value.items()}

    @property
    def is_plain_text(self) -> bool:
        """Whether the parser read `text` and no other column with a conversation."""
        return "text" in self._read

    def list_unread(self) -> list[str]:
        """Return the names of the filled columns that the parser did not read."""
        return [name for name, value in self.values.items() if name not in self._read and not is_empty(value)]


def rename_columns(row: Mapping[str, Any], fields: Mapping[FieldName, str]) -> RowColumns:
    """Rename columns to the names of the formats, using `fields`. Raises `RowError` if a column is missing."""
    if not fields:
        return RowColumns(row)
    source_names = set(fields.values())
    renamed_row = {key: value for key, value in row.items() if key not in source_names}
    replaced: list[str] = []
    for name, source in fields.items():
        if source in row:
            replaced += [name] if not is_empty(renamed_row.get(name)) else []
            renamed_row[name] = row[source]
        elif name not in _OPTIONAL_FIELDS:
            raise RowError(f"expected the column {source!r} (fields: {name}), found {format_keys(row)}")
    return RowColumns(renamed_row, {str(name): source for name, source in fields.items()}, tuple(replaced))


def list_unused_columns(columns: RowColumns, row_format: str, texts: Iterable[str]) -> list[str]:
    """Return the filled columns that the format does not use. `texts` are the texts of the parsed row.

    Raises `RowError` if the user named one of them in `fields`, or if one contains a part of the conversation.
    `row_format` is the format that the user set, or `auto`. If it is set, the other conversations of a row are not
    meant.
    """
    unread = columns.list_unread()
    for name in unread:
        if name in columns.source_names:
            _reject_named_column(name, columns)
        if _get_base_name(name) in _CONTEXT_COLUMNS:
            _reject_context(name)
    if row_format == "auto":
        _reject_conversations([name for name in unread if _is_conversation(name, columns)], columns, texts)
    return [*unread, *columns.replaced]


def _is_conversation(name: str, columns: RowColumns) -> bool:
    """Return whether a column contains a conversation or a label. Beside plain text, it may also be an answer."""
    return _get_base_name(name) in _CONVERSATION_COLUMNS or (columns.is_plain_text and name in COMPLETION_NAMES)


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
    if name in _MEDIA_COLUMNS:
        raise RowError(f"has {name!r}; only text can be trained on, so remove such rows or the column")
    raise RowError(f"has {name!r}, which its format does not use; remove the column, or use a format that has it")


def _reject_conversations(names: list[str], columns: RowColumns, texts: Iterable[str]) -> None:
    """Raise `RowError` for a column with a conversation or a label, unless it repeats texts of the row."""
    if not names:
        return
    row_text = "\n".join(texts)
    for name in names:
        if not all(isinstance(text, str) and text.strip() in row_text for text in _list_leaves(columns.values[name])):
            suggestion = suggest_fields(("text", name), ("prompt", "completion")) if columns.is_plain_text else ""
            raise RowError(
                f"has {name!r} in addition to the columns of its format, and would be trained without it; remove the "
                f"column, or set the format of the source to ignore it{suggestion and f'{suggestion} to train on it'}"
            )


def _list_leaves(value: object) -> list[object]:
    """Return the texts and other values of a column, without the roles of its turns."""
    if isinstance(value, list):
        return [leaf for item in value for leaf in _list_leaves(item)]
    if isinstance(value, dict):
        return [leaf for key, item in value.items() if key not in ("role", "from") for leaf in _list_leaves(item)]
    return [] if is_empty(value) else [value]


def format_keys(row: Mapping[str, Any]) -> str:
    """Return the keys of a row for an error message."""
    return ", ".join(map(format_value, list(row)[:8])) or "no keys"


def format_value(value: object) -> str:
    """Return a short description of a value for an error message."""
    return repr(value[:40]) if isinstance(value, str) else describe_type(value)
