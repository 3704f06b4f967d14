"""The adapter as it once was, to be put back. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from finetune_trainer.checkpoints.store import BEST_NAME
from finetune_trainer.distributed import topology


class AdapterCopy:
    """A copy of the trained weights, in the host's memory; each worker has its own, all the same."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._weights: dict[str, torch.Tensor] = {}

    def keep(self) -> None:
        """As they are now."""
        self._weights = {name: weight.detach().to("cpu", copy=True) for name, weight in self._trained().items()}

    def put_back(self) -> None:
        """Into the model, if any were kept."""
        trained = self._trained()
        with torch.no_grad():
            for name, weight in self._weights.items():
                trained[name].copy_(weight)

    def save(self, checkpoint: Path) -> None:
        """Beside the rest of the checkpoint, by the first worker: those of a node share the folder."""
        if self._weights and topology.is_first():
            save_file(self._weights, checkpoint / BEST_NAME)

    def restore(self, checkpoint: Path) -> None:
        """What the checkpoint holds; none does before the first look."""
        if (checkpoint / BEST_NAME).is_file():
            self._weights = load_file(checkpoint / BEST_NAME)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
