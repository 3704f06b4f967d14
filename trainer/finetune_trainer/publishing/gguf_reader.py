"""Reads GGUF files, independently of the converter that wrote them. The format is described in ggml's docs/gguf.md."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_MAGIC = b"GGUF"
_VERSION = 3
_DEFAULT_ALIGNMENT = 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Formats of the scalar values of metadata, by their type in the file."""
_STRING, _ARRAY = 8, 9
_TYPE_NAMES = {0: "f32", 1: "f16", 8: "q8_0", 30: "bf16"}
_Q8_BLOCK = 32
_Q8_BLOCK_BYTES = 34
"""A block of q8_0: a scale in f16, and 32 integers."""
_VALUE_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": _Q8_BLOCK_BYTES / _Q8_BLOCK}


@dataclass(frozen=True)
class GgufTensor:
    """The location of a tensor in a file. `shape` is in the order of torch."""

    path: Path
    type_name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        """Offset of the first byte after the values."""
        return self.offset + round(math.prod(self.shape) * _VALUE_BYTES[self.type_name])

    def read(self) -> npt.NDArray[np.float32]:
        """Return the values in 32 bits."""
        raw = np.memmap(self.path, dtype=np.uint8, mode="r", offset=self.offset, shape=(self.end - self.offset,))
        values: npt.NDArray[np.float32] = _DECODERS[self.type_name](raw).reshape(self.shape)
        return values


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensors of a file."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read metadata and list the tensors. Raises `ValueError` if the file is no GGUF file, or not complete."""
    try:
        with path.open("rb") as file:
            return _read(file, path)
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not a complete GGUF file of types f32, f16, bf16 and q8_0") from error


def _read(file: BinaryIO, path: Path) -> GgufFile:
    magic, version, tensor_count, metadata_count = file.read(4), *_unpack(file, "IQQ")
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(f"{path.name} is not a GGUF file of version {_VERSION}")
    metadata: dict[str, Any] = {
        _read_string(file): _read_value(file, _unpack(file, "I")[0]) for _ in range(metadata_count)
    }
    entries = [_read_tensor_entry(file) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    start = -(-file.tell() // alignment) * alignment
    tensors = {
        name: GgufTensor(path, _TYPE_NAMES[code], shape, start + offset) for name, code, shape, offset in entries
    }
    if max((tensor.end for tensor in tensors.values()), default=0) > path.stat().st_size:
        raise ValueError(f"{path.name} is truncated")
    return GgufFile(metadata, tensors)


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))


def _read_string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "Q")[0]).decode()


def _read_value(file: BinaryIO, code: int) -> object:
    if code == _STRING:
        return _read_string(file)
    if code == _ARRAY:
        element_code, count = _unpack(file, "IQ")
        if element_code in _SCALARS:
            return list(_unpack(file, f"{count}{_SCALARS[element_code]}"))
        return [_read_value(file, element_code) for _ in range(count)]
    return _unpack(file, _SCALARS[code])[0]


def _read_tensor_entry(file: BinaryIO) -> tuple[str, int, tuple[int, ...], int]:
    name = _read_string(file)
    dimensions = _unpack(file, f"{_unpack(file, 'I')[0]}Q")
    code, offset = _unpack(file, "IQ")
    return name, code, tuple(reversed(dimensions)), offset


def _decode_bf16(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _decode_q8_0(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    blocks = raw.reshape(-1, _Q8_BLOCK_BYTES)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return scales * blocks[:, 2:].view(np.int8).astype(np.float32)


_DECODERS = {
    "f32": lambda raw: raw.view("<f4"),
    "f16": lambda raw: raw.view("<f2").astype(np.float32),
    "bf16": _decode_bf16,
    "q8_0": _decode_q8_0,
}
