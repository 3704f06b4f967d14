"""The environment variables with the config of a container."""

from __future__ import annotations

from finetune_operator.api.objects import Body
from finetune_trainer.contract import get_part_variable, join_parts

_MAX_VARIABLE_BYTES = 131_071
"""Bytes of a variable with its name that Linux passes to a program (`MAX_ARG_STRLEN`, without the final null)."""
_PART_CHARACTERS = 30_000
"""Characters of each part of a longer config. Each has at most four bytes."""


def build_config_variables(variable: str, encoded: str) -> dict[str, str]:
    """Return the variables with a config, in several parts if it is too long for one.

    Each `$` is doubled: the kubelet expands `$(NAME)` and replaces `$$` by `$`. It is not sufficient to double only the
    `$` of `$(`, because `$$(NAME)` in the config would become `$$$(NAME)`, in which `$(NAME)` is expanded.
    """
    is_short = len(f"{variable}={encoded}".encode()) <= _MAX_VARIABLE_BYTES
    size = len(encoded) if is_short else _PART_CHARACTERS
    parts = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    return {get_part_variable(variable, index): part.replace("$", "$$") for index, part in enumerate(parts)}


def read_config_variables(variable: str, container: Body) -> str:
    """Return the config in the variables of a container. It is empty if there is none."""
    environment = {each["name"]: each.get("value", "") for each in container.get("env", [])}
    return join_parts(environment, variable).replace("$$", "$")
