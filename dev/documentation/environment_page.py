"""Generator of docs/reference/environment.md: the environment variables of the operator and of the trainer."""

from __future__ import annotations

import ast
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from documentation.tables import NOTE, render_table
from finetune_operator.settings import Settings
from finetune_trainer.contract import environment
from finetune_trainer.telemetry import http_server

_OPERATOR = """# Environment variables

## The operator

Set them through the [values of the chart](../../charts/finetune-operator/README.md), which has a value for each. Lists
and objects are JSON.

"""
_TRAINER = """
## The trainer

The operator sets them in the pods. On a workstation, all are optional; those that name the config are replaced by the
manifest on the command line. Credentials are those of every AWS tool: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`.

"""


def render_environment_page() -> str:
    """Return the page as Markdown."""
    operator = render_table(("Variable", "Default", "Meaning"), _list_settings())
    trainer = render_table(("Variable", "Meaning"), _list_trainer_variables())
    return f"{NOTE}{_OPERATOR}{operator}{_TRAINER}{trainer}"


def _list_settings() -> Iterator[tuple[str, str, str]]:
    prefix = Settings.model_config["env_prefix"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, BaseModel):
            default = {}
        shown = "" if default in (None, "") else f"`{json.dumps(default)}`"
        yield f"`{prefix}{name.upper()}`", shown, field.description or ""


def _list_trainer_variables() -> list[tuple[str, str]]:
    modules = (environment.__file__, http_server.__file__)
    variables = [variable for module in modules for variable in _read_variables(Path(module))]
    return sorted((f"`{name}`", text) for name, text in variables)


def _read_variables(module: Path) -> Iterator[tuple[str, str]]:
    """Yield the value and the docstring of each constant of a module whose name ends in `_ENV`."""
    statements = ast.parse(module.read_text(encoding="utf-8")).body
    for statement, following in itertools.pairwise(statements):
        match statement, following:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(value))),
                ast.Expr(value=ast.Constant(value=str(text))),
            ) if name.endswith("_ENV"):
                yield value, text
