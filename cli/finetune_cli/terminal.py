"""Output to the terminal. All text from a cluster or a store may be hostile and is escaped here."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from unicodedata import combining, east_asian_width

from finetune_cli.errors import CommandError, print_error
from finetune_cli.exit_statuses import EXIT_USAGE
from finetune_cli.options import OutputFormat
from finetune_trainer.text import escape_invisible, to_one_line

_MAX_CELL_CHARS = 200
_MIN_COLUMN_WIDTH = 8
_GAP = "   "
_ASCII = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2026": "...", "\u2192": "->"})


class Terminal:
    """Prints results to stdout and messages to stderr. Colours and progress bars only if the stream is a terminal."""

    def __init__(self, output: OutputFormat) -> None:
        self.output = output

    @property
    def is_interactive(self) -> bool:
        """Whether stdout is a terminal."""
        return sys.stdout.isatty()

    @property
    def prints_data(self) -> bool:
        """Whether the output is JSON or YAML."""
        return self.output is not OutputFormat.TABLE

    def print_line(self, text: str) -> None:
        """Print a line of a result, with invisible characters made visible."""
        sys.stdout.write(_make_encodable(escape_invisible(text)) + "\n")

    def flush(self) -> None:
        """Write what is buffered, so that a reader sees it at once."""
        sys.stdout.flush()

    def print_text(self, text: str) -> None:
        """Print a text of several lines, such as a file, as it is."""
        sys.stdout.write(text)

    def print_error(self, message: str) -> None:
        """Print an error to stderr, on one line."""
        print_error(message)

    def print_note(self, message: str) -> None:
        """Print what happens to stderr, on one line."""
        sys.stderr.write(to_one_line(message, 4000) + "\n")

    def print_data(self, data: object) -> None:
        """Print a result as JSON or YAML, as `--output` says. `data` is what JSON can represent."""
        if self.output is OutputFormat.YAML:
            _print_yaml(data)
            return
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=True) + "\n")

    def print_table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table without borders, as kubectl does. Columns are as wide as needed.

        If a terminal is narrower than the table, the widest columns are cut.
        """
        cells = [[to_one_line(cell, _MAX_CELL_CHARS) for cell in row] for row in (columns, *rows)]
        widths = [max(map(measure_width, column)) for column in zip(*cells, strict=True)]
        if self.is_interactive:
            widths = fit_widths(widths, shutil.get_terminal_size().columns)
        for row in cells:
            padded = (pad(cell, width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write(_make_encodable(_GAP.join(padded).rstrip()) + "\n")

    def print_fields(self, values: Mapping[str, str]) -> None:
        """Print names and values, one on each line."""
        width = max(map(len, values), default=0)
        for name, value in values.items():
            sys.stdout.write(_make_encodable(f"{name.ljust(width)}  {to_one_line(value)}") + "\n")

    def confirm(self, question: str) -> bool:
        """Ask a question on the terminal, and return whether the answer is yes. Raises `CommandError` without one."""
        if not sys.stdin.isatty():
            raise CommandError("there is no terminal to ask for a confirmation: add --yes", EXIT_USAGE)
        sys.stderr.write(f"{to_one_line(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def measure_width(text: str) -> int:
    """Return the number of columns of a text on one line."""
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def pad(text: str, width: int) -> str:
    """Fill a text with spaces to a width, or cut it, with an ellipsis at its end."""
    if measure_width(text) <= width:
        return text + " " * (width - measure_width(text))
    cut = text
    while measure_width(cut) > width - 1:
        cut = cut[:-1]
    return f"{cut}…" + " " * (width - 1 - measure_width(cut))


def fit_widths(widths: Sequence[int], total: int) -> list[int]:
    """Reduce the widest columns until the table fits, as far as columns stay readable."""
    fitted = list(widths)
    while sum(fitted) + len(_GAP) * (len(fitted) - 1) > total and max(fitted) > _MIN_COLUMN_WIDTH:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def _print_yaml(data: object) -> None:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.allow_unicode, yaml.width = False, False, 120
    yaml.representer.sort_base_mapping_type_on_output = False
    yaml.dump(data, sys.stdout)


def _make_encodable(text: str) -> str:
    """Replace characters that the encoding of stdout does not have, by similar ones where there are some."""
    encoding = sys.stdout.encoding or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.translate(_ASCII)
    return text.encode(encoding, "replace").decode(encoding)
