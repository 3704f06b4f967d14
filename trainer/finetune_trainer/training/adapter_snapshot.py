"""The adapter as it once was, to be put back. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from finetune_trainer.checkpoints.store import BEST_ADAPTER_NAME
from finetune_trainer.distributed import topology


class AdapterSnapshot:
    """A copy of the trained weights, in the host's memory; each worker has its own, all the same."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._weights: dict[str, torch.Tensor] = {}

    def capture(self) -> None:
        """As they are now."""
        self._weights = {
            name: weight.detach().to("cpu", copy=True) for name, weight in self._trainable_parameters().items()
        }

    def restore(self) -> None:
        """Into the model, if any were kept."""
        parameters = self._trainable_parameters()
        with torch.no_grad():
            for name, weight in self._weights.items():
                parameters[name].copy_(weight)

    def save(self, checkpoint: Path) -> None:
        """Beside the rest of the checkpoint, by the first worker: those of a node share the folder."""
        if self._weights and topology.is_rank_zero():
            save_file(self._weights, checkpoint / BEST_ADAPTER_NAME)

    def load(self, checkpoint: Path) -> None:
        """What the checkpoint holds; none does before the first look."""
        if (checkpoint / BEST_ADAPTER_NAME).is_file():
            self._weights = load_file(checkpoint / BEST_ADAPTER_NAME)

    def _trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
