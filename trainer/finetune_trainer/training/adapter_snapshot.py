"""A snapshot of the adapter that can be restored. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from finetune_trainer.checkpoints.layout import BEST_ADAPTER_NAME
from finetune_trainer.distributed import topology


class AdapterSnapshot:
    """A copy of the trainable weights in host memory. Every rank keeps its own, which are identical."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._weights: dict[str, torch.Tensor] = {}

    def capture(self) -> None:
        """Copy the current weights."""
        self._weights = {
            name: weight.detach().to("cpu", copy=True) for name, weight in self._trainable_parameters().items()
        }

    def restore(self) -> None:
        """Copy the captured weights back into the model, if there are any."""
        parameters = self._trainable_parameters()
        with torch.no_grad():
            for name, weight in self._weights.items():
                parameters[name].copy_(weight)

    def save(self, checkpoint: Path) -> None:
        """Write the captured weights into a checkpoint. Only rank 0 writes: the ranks of a node share the folder."""
        if self._weights and topology.is_rank_zero():
            save_file(self._weights, checkpoint / BEST_ADAPTER_NAME)

    def load(self, checkpoint: Path) -> None:
        """Read the captured weights from a checkpoint. It has none before the first evaluation."""
        if (checkpoint / BEST_ADAPTER_NAME).is_file():
            self._weights = load_file(checkpoint / BEST_ADAPTER_NAME)

    def _trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
