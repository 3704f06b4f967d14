"""What a command works with: its options, the terminal, and the client, which is imported and connected when needed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import typer

from finetune_cli.options import CommandFunction, Options, build_parameters
from finetune_cli.terminal import Terminal

if TYPE_CHECKING:
    from finetune_operator.client import Client

EXIT_FAILURE = 1
"""Exit status of a run that has failed, and of every error."""
EXIT_USAGE = 2
"""Exit status of wrong arguments and invalid manifests."""


class CommandError(Exception):
    """An error of a command. The message is complete and is printed as it is."""

    def __init__(self, message: str, exit_status: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class Session:
    """One call of a command."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.terminal = Terminal(options.output)

    @cached_property
    def client(self) -> Client:
        """The client of the cluster. The first access imports it and reads the kubeconfig."""
        from finetune_operator.client import Client

        return Client(
            self.options.namespace,
            context=self.options.context,
            kubeconfig=self.options.kubeconfig,
            endpoint=self.options.endpoint,
        )


def add_command(app: typer.Typer, name: str, function: CommandFunction) -> None:
    """Add a command whose function has a `Session` as its first parameter. The others are its own options.

    The options of `Options` are added to it.
    """
    own_parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    shared_parameters = build_parameters()
    shared_names = {parameter.name for parameter in shared_parameters}

    @functools.wraps(function)
    def run(**arguments: object) -> None:
        shared = {key: value for key, value in arguments.items() if key in shared_names}
        own = {key: value for key, value in arguments.items() if key not in shared_names}
        session = Session(Options(**shared))  # type: ignore[arg-type]  # the application has converted them
        with _report_errors(session.terminal):
            function(session, **own)

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own_parameters, *shared_parameters)
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name)(run)


@contextmanager
def _report_errors(terminal: Terminal) -> Iterator[None]:
    """Print an error as one line, and end with its exit status."""
    try:
        yield
    except CommandError as error:
        terminal.print_error(str(error))
        raise typer.Exit(error.exit_status) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        # The client takes half a second to import, and it is imported if it has raised an error.
        from finetune_operator.client.errors import ClientError, InvalidManifest
        from finetune_trainer.errors import TrainerError

        if not isinstance(error, (ClientError, TrainerError)):
            raise
        terminal.print_error(str(error))
        exit_status = EXIT_USAGE if isinstance(error, InvalidManifest) else EXIT_FAILURE
        raise typer.Exit(exit_status) from None
