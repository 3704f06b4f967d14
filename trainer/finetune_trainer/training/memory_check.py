"""Compares the memory that a run needs with that of its GPU, before the weights are downloaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import format_bytes
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.training.fitting_settings import FittingSettings, RunSize, find_nearest
from finetune_trainer.training.memory_needs import MemoryEstimate

log = logging.getLogger(__name__)

MAX_ERROR = 1.15
"""The estimate is at most this many times the memory that a run needs."""
_TIGHT_SHARE = 0.9
_CGROUP_LIMIT_PATH = Path("/sys/fs/cgroup/memory.max")
"""Memory limit of a container in bytes, or `max`. Missing outside of Linux."""


@dataclass(frozen=True)
class Capacity:
    """The memory that a model is loaded into."""

    kind: str
    """`GPU` or `host`."""
    total: int
    free: int


def measure_capacity() -> Capacity:
    """Return the memory of the current GPU, or that of the container or host without a GPU."""
    import psutil
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Capacity("GPU", total, free)
    memory = psutil.virtual_memory()
    limit_text = _CGROUP_LIMIT_PATH.read_text().strip() if _CGROUP_LIMIT_PATH.is_file() else "max"
    limit = int(memory.total) if limit_text == "max" else int(limit_text)
    return Capacity("host", min(int(memory.total), limit), min(int(memory.available), limit))


@dataclass(frozen=True)
class Prediction:
    """The memory that a run needs of a machine."""

    config: TrainerConfig
    """The config with its precision on this machine."""
    size: RunSize
    memory: MemoryEstimate
    counts_activations: bool
    """False for a host, whose memory can be paged, and with Unsloth or Liger kernels, which need less for activations
    than the estimate."""

    @property
    def needed(self) -> int:
        """The bytes that are counted."""
        return self.memory.total if self.counts_activations else self.memory.base + self.memory.adapter


def predict_memory(config: TrainerConfig, size: RunSize, backend: str, capacity: Capacity) -> Prediction:
    """Estimate the memory of a run on this machine."""
    training = config.training.model_copy(update={"precision": resolve_precision(config)})
    resolved = config.model_copy(update={"training": training})
    needs_less = capacity.kind == "host" or backend == "unsloth" or training.kernels == "liger"
    return Prediction(resolved, size, size.estimate(resolved), not needs_less)


def check_memory(prediction: Prediction, capacity: Capacity, advised_size: RunSize) -> None:
    """Raise `OUT_OF_MEMORY` if the run cannot fit even if the estimate is 15 % too high. The settings in the message
    fit rows as in `advised_size`."""
    if prediction.needed <= capacity.total * MAX_ERROR:
        return
    is_gpu = capacity.kind == "GPU"
    nearest = find_nearest(prediction.config, advised_size, capacity.total) if is_gpu else None
    message = _describe_shortage(prediction.memory, prediction.needed, capacity, nearest)
    raise TrainerError(Reason.OUT_OF_MEMORY, message)


def log_memory(prediction: Prediction, capacity: Capacity) -> None:
    """Log the predicted memory, as a warning if little of the memory remains."""
    needed = prediction.needed
    is_tight = needed > capacity.total * _TIGHT_SHARE
    what = "" if prediction.counts_activations else " for base model and adapter"
    message = (
        f"memory: predicted {format_bytes(needed)}{what} of {format_bytes(capacity.total)} of {capacity.kind} memory"
    )
    log.log(logging.WARNING if is_tight else logging.INFO, message)


def _describe_shortage(memory: MemoryEstimate, needed: int, capacity: Capacity, nearest: FittingSettings | None) -> str:
    uses = f"base model {format_bytes(memory.base)}, adapter {format_bytes(memory.adapter)}"
    if memory.gathered:
        uses += f", gathered layers {format_bytes(memory.gathered)}"
    if capacity.kind == "GPU":
        uses += f", activations {format_bytes(memory.activations)}, logits {format_bytes(memory.logits)}"
    needs = f"the run needs about {format_bytes(needed)} of {capacity.kind} memory ({uses})"
    return f"{needs}, but there are {format_bytes(capacity.total)}; {_advise(capacity, nearest)}"


def _advise(capacity: Capacity, nearest: FittingSettings | None) -> str:
    if nearest is None:
        return f"provide more {capacity.kind} memory, lower model.maxLength, or use a smaller model"
    fields = ", ".join(f"{name} {describe_value(value)}" for name, value in nearest.fields.items())
    return f"set {fields}, which need about {format_bytes(nearest.memory.total)}"


def describe_value(value: str | int | bool) -> str:
    """Return a value as it is written in a manifest."""
    return str(value).lower() if isinstance(value, bool) else str(value)
