"""Parses stored objects, which a newer or an older operator may have written."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from finetune_operator.client.errors import ClientError

_MAX_REPAIRS = 8
ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_object(kind: type[ModelT], body: Mapping[str, Any]) -> ModelT:
    """Return a stored object. Fields and values that this version does not know are left out.

    Raises `ClientError` if what remains is not a valid object.
    """
    known = copy.deepcopy(dict(body))
    for _ in range(_MAX_REPAIRS):
        try:
            return kind.model_validate(known)
        except ValidationError as error:
            problem = error
            if not _remove_unknown(known, error):
                break
    name = body.get("metadata", {}).get("name", "")
    message = f"{kind.__name__} {name} cannot be read by this version of finetune: {problem.errors()[0]['msg']}"
    raise ClientError(f"{message}; install the version of the cluster's operator")


def _remove_unknown(body: dict[str, Any], error: ValidationError) -> bool:
    """Remove the fields that an error is about, if they are unknown or in the status. Return whether there were any."""
    removed = [
        _remove_path(body, details["loc"])
        for details in error.errors()
        if details["type"] == "extra_forbidden" or details["loc"][:1] == ("status",)
    ]
    return any(removed)


def _remove_path(body: dict[str, Any], path: Sequence[str | int]) -> bool:
    """Remove a field or an item. Return whether there was one."""
    parent: Any = body
    try:
        for part in path[:-1]:
            parent = parent[part]
        del parent[path[-1]]
    except (KeyError, IndexError, TypeError):
        return False  # removed before, or the path has the name of a type as pydantic adds it
    return True
