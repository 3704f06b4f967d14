"""Options of commands. A group of options is a dataclass whose fields are annotated as typer's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class OutputFormat(StrEnum):
    """Formats of the output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


ENDPOINT_ENV = "FINETUNE_S3_ENDPOINT"
"""Variable with the address of the S3 store as this machine reaches it."""


def refuse_empty_text(value: str | None) -> str | None:
    """Return the value of an option. Raises for text without a letter."""
    if value is not None and not value.strip():
        raise typer.BadParameter("must not be empty")
    return value


@dataclass(frozen=True)
class Options:
    """The options that every command has. Field names are the names of the options."""

    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="Namespace; by default that of the context."),
    ] = None
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig; by default the current one.")] = None
    kubeconfig: Annotated[Path | None, typer.Option(help="The kubeconfig file; by default $KUBECONFIG.")] = None
    endpoint: Annotated[
        str | None,
        typer.Option(
            envvar=ENDPOINT_ENV,
            help="Address of the S3 store as this machine reaches it; by default storage.endpoint of the run. Without "
            "a run, AWS is the default.",
        ),
    ] = None
    output: Annotated[OutputFormat, typer.Option("--output", "-o", help="Format of the output.")] = OutputFormat.TABLE


def build_parameters(group: type[Any] = Options) -> list[inspect.Parameter]:
    """Return the options of a group as parameters of a function."""
    annotations = inspect.get_annotations(group, eval_str=True)
    return [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if option.default is MISSING else option.default,
            annotation=annotations[option.name],
        )
        for option in fields(group)
    ]


CommandFunction = Callable[..., None]
