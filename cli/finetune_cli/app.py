"""The application: all commands, in the order in which the help lists them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from finetune_cli.commands import (
    adapter,
    chat,
    compare,
    control,
    doctor,
    init,
    listing,
    logs,
    plan,
    promotion,
    report,
    schedule,
    submit,
    sweep,
    ui,
    validate,
    watch,
)
from finetune_cli.errors import is_expected, print_error, report_error
from finetune_cli.exit_statuses import EXIT_FAILURE, EXIT_INTERRUPTED
from finetune_cli.session import add_command

_HELP = """Fine-tune language models on Kubernetes: write, submit and follow runs, and read their results.

Also works as `kubectl finetune`. Commands use the kubeconfig's current context and namespace, and the S3 credentials
of this machine."""
_COMMANDS = (
    ("init", init.write_manifest),
    ("validate", validate.validate_files),
    ("plan", plan.plan_run),
    ("submit", submit.submit_manifest),
    ("list", listing.list_runs),
    ("watch", watch.watch_run),
    ("logs", logs.print_log),
    ("report", report.open_report),
    ("get-adapter", adapter.download_adapter),
    ("compare", compare.compare),
    ("suspend", control.suspend),
    ("resume", control.resume),
    ("cancel", control.cancel),
    ("chat", chat.chat_with_result),
    ("sweep", sweep.show_sweep),
    ("schedule", schedule.show_schedule),
    ("promote", promotion.promote_run),
    ("rollback", promotion.roll_back),
    ("doctor", doctor.examine_cluster),
    ("ui", ui.show_pages),
)
_PLUGIN_NAME = "kubectl-finetune"


def build_app() -> typer.Typer:
    """Build the application."""
    app = typer.Typer(
        name="finetune",
        help=_HELP,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help as of kubectl, which needs a third of the time
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_begin)
    for name, function in _COMMANDS:
        add_command(app, name, function)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status. Errors that are no bugs are printed, each on one line."""
    try:
        status = _run_command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return EXIT_FAILURE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        _discard_output()
        print_error(f"the output cannot be written: {error.strerror}")
        return EXIT_FAILURE
    return status


def get_program_name() -> str:
    """Return the name that the user has called: `finetune` or `kubectl finetune`."""
    return "kubectl finetune" if Path(sys.argv[0]).name == _PLUGIN_NAME else "finetune"


def _run_command(arguments: Sequence[str]) -> int:
    command = get_command(build_app())
    try:
        status = command.main(arguments or ["--help"], prog_name=_find_program_name(arguments), standalone_mode=False)
    except typer.TyperException as error:
        known = f" {arguments[0]}" if arguments[0] in dict(_COMMANDS) else ""
        print_error(f"{error.format_message().rstrip('.')}; see `{get_program_name()}{known} --help`")
        return error.exit_code
    except typer.Abort:
        return EXIT_INTERRUPTED
    except Exception as error:
        if not is_expected(error):
            raise
        return report_error(error)
    return status if isinstance(status, int) else 0


def _find_program_name(arguments: Sequence[str]) -> str:
    """Return the name for the help. Completion scripts of shells are those of `finetune`, also for the plugin."""
    is_completion = any(argument.endswith("-completion") for argument in arguments)
    return "finetune" if is_completion else get_program_name()


def _discard_output() -> None:
    """Discard what is still to be written, so that the interpreter does not complain about it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(is_set: bool) -> None:
    if is_set:
        from importlib.metadata import version

        sys.stdout.write(f"{version('finetune-operator')}\n")
        raise typer.Exit


def _begin(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make the application one of several commands, also while it has a single one."""
