"""Output to the terminal. All text from a cluster or a store may be hostile and is escaped here."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from finetune_cli.options import OutputFormat
from finetune_trainer.text import escape_invisible, to_one_line


class Terminal:
    """Prints results to stdout and messages to stderr. Colours and progress bars only if the stream is a terminal."""

    def __init__(self, output: OutputFormat) -> None:
        self.output = output

    @property
    def is_interactive(self) -> bool:
        """Whether stdout is a terminal."""
        return sys.stdout.isatty()

    def print_line(self, text: str) -> None:
        """Print a line of a result, with invisible characters made visible."""
        sys.stdout.write(escape_invisible(text) + "\n")

    def print_error(self, message: str) -> None:
        """Print an error to stderr, on one line."""
        sys.stderr.write(f"error: {to_one_line(message, 4000)}\n")

    def print_note(self, message: str) -> None:
        """Print what happens to stderr, on one line."""
        sys.stderr.write(to_one_line(message, 4000) + "\n")

    def print_data(self, data: object) -> None:
        """Print a result as JSON or YAML, as `--output` says. `data` is what JSON can represent."""
        if self.output is OutputFormat.YAML:
            from ruamel.yaml import YAML

            YAML(typ="safe", pure=True).dump(data, sys.stdout)
            return
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=True) + "\n")

    def print_table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table without borders, as kubectl does. Columns are as wide as needed."""
        cells = [list(columns), *([to_one_line(cell, 200) for cell in row] for row in rows)]
        widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
        for row in cells:
            sys.stdout.write(
                "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
            )

    def print_fields(self, values: Mapping[str, str]) -> None:
        """Print names and values, one on each line."""
        width = max(map(len, values), default=0)
        for name, value in values.items():
            sys.stdout.write(f"{name.ljust(width)}  {to_one_line(value)}\n")
