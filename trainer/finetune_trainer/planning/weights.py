"""What safetensors files say of themselves: names, types and shapes of the weights, without one of their values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
"""Of safetensors' own reader; a length beyond it is damage or an attempt to fill the memory."""


def read_header(name: str, read: Callable[[int, int], bytes]) -> bytes:
    """A file's first bytes, up to the end of its header; `read` takes start and end. Raises `MODEL_INVALID`."""
    length = int.from_bytes(read(0, _LENGTH_BYTES), "little")
    if not 2 <= length <= _LONGEST_HEADER:
        raise _invalid(name, f"its header claims to be {length} bytes long")
    end = _LENGTH_BYTES + length
    header = read(0, end)
    if len(header) < end:
        raise _invalid(name, "it ends within its header")
    return header


def parameters(model_dir: Path) -> int:
    """How many numbers the model's weights are. Raises `MODEL_INVALID` for headers that cannot be read."""
    return sum(math.prod(shape) for path in sorted(model_dir.glob("*.safetensors")) for shape in _shapes(path))


def _shapes(path: Path) -> Iterator[list[int]]:
    with path.open("rb") as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        header = _parsed(path.name, read_header(path.name, read)[_LENGTH_BYTES:])
    for tensor, entry in header.items():
        if tensor != "__metadata__":
            yield _shape(path.name, entry)


def _parsed(name: str, header: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise _invalid(name, "its header is not JSON") from error
    if not isinstance(parsed, dict):
        raise _invalid(name, "its header is not a JSON object")
    return parsed


def _shape(name: str, entry: object) -> list[int]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise _invalid(name, "its header lists a tensor without a shape")
    return shape


def _invalid(name: str, what: str) -> TrainerError:
    return TrainerError(Reason.MODEL_INVALID, f"the base model cannot be loaded: {name} is no safetensors file: {what}")
