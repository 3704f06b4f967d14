"""Reads the headers of safetensors files: names, types and shapes of the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

_HEADER_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""The limit of safetensors' own reader. A larger value is a sign of damage, or an attempt to exhaust the memory."""


def read_header(name: str, read_range: Callable[[int, int], bytes]) -> bytes:
    """Return the first bytes of a file, up to the end of its header. Raises `MODEL_INVALID`."""
    length = int.from_bytes(read_range(0, _HEADER_LENGTH_BYTES), "little")
    if not 2 <= length <= _MAX_HEADER_BYTES:
        raise _build_header_error(name, f"its header claims to be {length} bytes long")
    end = _HEADER_LENGTH_BYTES + length
    header = read_range(0, end)
    if len(header) < end:
        raise _build_header_error(name, "it ends within its header")
    return header


def count_parameters(model_dir: Path) -> int:
    """Return the number of parameters of a model. Raises `MODEL_INVALID` for invalid headers."""
    return sum(math.prod(shape) for path in sorted(model_dir.glob("*.safetensors")) for shape in _read_shapes(path))


def _read_shapes(path: Path) -> Iterator[list[int]]:
    with path.open("rb") as file:

        def read_range(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        header = _parse_header(path.name, read_header(path.name, read_range)[_HEADER_LENGTH_BYTES:])
    for tensor, entry in header.items():
        if tensor != "__metadata__":
            yield _parse_shape(path.name, entry)


def _parse_header(name: str, header: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise _build_header_error(name, "its header is not JSON") from error
    if not isinstance(parsed, dict):
        raise _build_header_error(name, "its header is not a JSON object")
    return parsed


def _parse_shape(name: str, entry: object) -> list[int]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise _build_header_error(name, "its header lists a tensor without a shape")
    return shape


def _build_header_error(name: str, problem: str) -> TrainerError:
    return TrainerError(
        Reason.MODEL_INVALID, f"the base model cannot be loaded: {name} is not a safetensors file: {problem}"
    )
