"""Parses stored objects, which a newer or an older operator may have written."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from finetune_operator.client.errors import ClientError
from finetune_trainer.text import to_one_line

_MAX_REPAIRS = 16
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
            if not _remove_unknown(known, error):
                break
    known.pop("status", None)
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _build_error(kind, body, error) from None


def _build_error(kind: type[ModelT], body: Mapping[str, Any], error: ValidationError) -> ClientError:
    metadata = body.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, Mapping) else ""
    problem = error.errors(include_url=False)[0]
    field = ".".join(map(str, problem["loc"]))
    return ClientError(
        to_one_line(f"{kind.__name__} {name} cannot be read by this version of finetune: {field}: {problem['msg']}")
        + "; install the version of the cluster's operator"
    )


def _remove_unknown(body: dict[str, Any], error: ValidationError) -> bool:
    """Remove the fields that an error is about, if they are unknown or in the status. Return whether there were any."""
    removed = [
        _remove_path(body, details["loc"])
        # From the end, so that the indexes of the items before stay valid.
        for details in reversed(error.errors(include_url=False))
        if details["type"] == "extra_forbidden" or details["loc"][:1] == ("status",)
    ]
    return any(removed)


def _remove_path(body: dict[str, Any], path: Sequence[str | int]) -> bool:
    """Remove a field or an item, or what would contain it. Return whether there was one."""
    for length in range(len(path), 0, -1):
        parent: Any = body
        try:
            for part in path[: length - 1]:
                parent = parent[part]
            del parent[path[length - 1]]
        except (KeyError, IndexError, TypeError):
            continue  # it is missing, was removed before, or is the name of a type as pydantic adds it
        return True
    return False
