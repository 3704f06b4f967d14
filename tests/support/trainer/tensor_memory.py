"""Counts the bytes of live tensors, on any device. Import this module only after the backend."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's methods have no types
    """Counts the storages of the tensors that operators return in the block, until they are freed.

    Buffers that a kernel allocates and frees within an operator are not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, int] = {}
        self.bytes = 0
        self.peak = 0

    def __torch_dispatch__(
        self,
        operator: Callable[..., Any],
        _types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> object:
        result = operator(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor that was created outside of the block."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or tensor.device.type == "meta":
            return
        self._live[key] = storage.nbytes()
        self.bytes += self._live[key]
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._remove, key)

    def add_all(self, model: torch.nn.Module) -> None:
        """Count the parameters and buffers of a model."""
        for tensor in (*model.parameters(), *model.buffers()):
            self.add(tensor)

    def _remove(self, key: int) -> None:
        self.bytes -= self._live.pop(key)

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Count the peak of the block alone in `peak`."""
        self.peak = self.bytes
        with self:
            yield
