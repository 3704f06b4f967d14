"""`finetune compare`: how two published results differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from finetune_cli.completion import complete_runs
from finetune_cli.published import read_result
from finetune_cli.session import Session

if TYPE_CHECKING:
    from finetune_cli.terminal import Terminal
    from finetune_operator.client import Difference, MetricRow, RunComparison

_RunName = Annotated[
    str, typer.Argument(help="Name of a run, or the S3 prefix of a result.", autocompletion=complete_runs)
]


def compare(session: Session, first: _RunName, second: _RunName) -> None:
    """Compare two results: settings, data and metrics, with the paired change where both have evaluated the same
    rows."""
    from finetune_operator.client import compare_runs

    first_store, first_result = read_result(session, first)
    second_store, second_result = read_result(session, second)
    comparison = compare_runs(
        first_result, second_result, first_store.read_rows(first_result), second_store.read_rows(second_result)
    )
    if session.terminal.prints_data:
        from finetune_cli.data import to_data

        session.terminal.print_data(to_data(comparison))
    else:
        _print_comparison(session.terminal, comparison)


def _print_comparison(terminal: Terminal, comparison: RunComparison) -> None:
    names = (comparison.first, comparison.second)
    for title, differences in (("SETTING", comparison.settings), ("DATA", comparison.data)):
        if differences:
            terminal.print_table((title, *names), [_build_difference_row(each) for each in differences])
        else:
            terminal.print_line(f"{title}: no difference")
        terminal.print_line("")
    columns = ("METRIC", *names, "CHANGE", "95% INTERVAL", "VERDICT")
    terminal.print_table(columns, [_build_metric_row(row) for row in comparison.metrics])
    if comparison.common_rows:
        terminal.print_note(f"Changes are paired on {comparison.common_rows} validation rows that both have evaluated.")


def _build_difference_row(difference: Difference) -> tuple[str, str, str]:
    return difference.field, _format_value(difference.first), _format_value(difference.second)


def _format_value(value: str | None) -> str:
    return "-" if value is None else value


def _build_metric_row(row: MetricRow) -> tuple[str, ...]:
    from finetune_trainer.formatting import format_number, format_signed

    values = ["-" if value is None else format_number(value) for value in (row.first, row.second)]
    if row.change is None:
        return (row.name, *values, "", "", row.verdict)
    low, high = row.change.low, row.change.high
    interval = f"{format_signed(low)} to {format_signed(high)}" if low is not None and high is not None else ""
    return (row.name, *values, format_signed(row.change.change), interval, row.verdict)
