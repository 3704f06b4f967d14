"""What a command works with: its options, the terminal, and the client, which is imported and connected when needed."""

from __future__ import annotations

import functools
import inspect
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_FAILURE, EXIT_USAGE
from finetune_cli.options import CommandFunction, Options, build_parameters
from finetune_cli.terminal import Terminal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from finetune_operator.client import Client

GroupT = TypeVar("GroupT", bound="DataclassInstance")

__all__ = ["EXIT_FAILURE", "EXIT_USAGE", "CommandError", "Session", "add_command"]


class Session:
    """One call of a command."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.terminal = Terminal(options.output)

    @cached_property
    def client(self) -> Client:
        """The client of the cluster. The first access imports it and reads the kubeconfig."""
        from finetune_operator.client import Client

        _silence_transport()
        return Client(
            self.options.namespace,
            context=self.options.context,
            kubeconfig=self.options.kubeconfig,
            endpoint=self.options.endpoint,
        )

    def in_namespace(self, namespace: str | None) -> Session:
        """Return the session for the namespace that a manifest names, unless `--namespace` is set."""
        if self.options.namespace or not namespace:
            return self
        return Session(replace(self.options, namespace=namespace))


def _silence_transport() -> None:
    """Keep urllib3 from writing to stderr: errors are reported once, and the kubeconfig decides about TLS."""
    import logging
    import warnings

    from urllib3.exceptions import InsecureRequestWarning

    logging.getLogger("urllib3").setLevel(logging.ERROR)
    for category in (InsecureRequestWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)


def add_command(app: typer.Typer, name: str, function: CommandFunction) -> None:
    """Add a command whose function has a `Session` as its first parameter. The others are its own options.

    The options of `Options` are added to it. A parameter whose type is a dataclass is a group of options: its fields
    are added in its place.
    """
    groups, parameters = _split_parameters(function)

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        session = Session(_take_group(Options, arguments))
        own = {name: _take_group(group, arguments) for name, group in groups.items()}
        function(session, **own, **arguments)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name)(run)


def _split_parameters(function: CommandFunction) -> tuple[dict[str, type[Any]], list[inspect.Parameter]]:
    """Return the groups of options by the name of their parameter, and all options as parameters."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    groups: dict[str, type[Any]] = {
        parameter.name: parameter.annotation
        for parameter in own
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }
    parameters = [
        option
        for parameter in own
        for option in (build_parameters(groups[parameter.name]) if parameter.name in groups else [parameter])
    ]
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    return groups, [*keyword_only, *build_parameters()]


def _take_group(group: type[GroupT], arguments: dict[str, Any]) -> GroupT:
    """Remove the options of a group from the arguments, and return the group."""
    return group(**{option.name: arguments.pop(option.name) for option in fields(group)})
