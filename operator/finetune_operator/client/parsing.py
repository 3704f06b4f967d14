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
    paths = {
        _find_existing(body, details["loc"])
        for details in error.errors(include_url=False)
        if details["type"] == "extra_forbidden" or details["loc"][:1] == ("status",)
    } - {()}
    for path in sorted(paths, reverse=True):  # from the end, so that the indexes of the items before stay valid
        parent: Any = body
        for part in path[:-1]:
            parent = parent[part]
        del parent[path[-1]]
    return bool(paths)


def _find_existing(body: Mapping[str, Any], path: Sequence[str | int]) -> tuple[str | int, ...]:
    """Return the path of a field, or of what would contain it if it is missing."""
    node: Any = body
    for length, part in enumerate(path):
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return tuple(path[:length])
    return tuple(path)
