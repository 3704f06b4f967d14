"""The generated reference page of the command line."""

from __future__ import annotations

from finetune_cli import reference


def test_reference_page_is_up_to_date() -> None:
    assert reference.main(["--check"]) == 0


def test_reference_page_has_each_command_and_exit_status() -> None:
    page = reference.render_reference()

    assert "## finetune get-adapter" in page
    assert "| `--from URI` |" in page
    assert "| 4 | The run is `Suspended`" in page
