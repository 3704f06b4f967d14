"""The application: all commands, in the order in which the help lists them."""

from __future__ import annotations

import typer

from finetune_cli.commands import listing, ui
from finetune_cli.session import add_command

_HELP = """Fine-tune language models on Kubernetes: write, submit and follow runs, and read their results.

Also works as `kubectl finetune`. Commands use the kubeconfig's current context and namespace, and the S3 credentials
of this machine."""
_COMMANDS = (
    ("list", listing.list_runs),
    ("ui", ui.show_pages),
)


def build_app() -> typer.Typer:
    """Build the application."""
    app = typer.Typer(
        name="finetune",
        help=_HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_begin)
    for name, function in _COMMANDS:
        add_command(app, name, function)
    return app


def _begin() -> None:
    """Make the application one of several commands, also while it has a single one."""
