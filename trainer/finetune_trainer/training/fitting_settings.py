"""Finds the settings of a run that fit a GPU, and the fastest of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from finetune_trainer.contract import TrainerConfig, Training
from finetune_trainer.modeling.sharding_limits import list_unsupported_settings
from finetune_trainer.training.batching import Lengths
from finetune_trainer.training.computed_tokens import count_computed_tokens
from finetune_trainer.training.memory_needs import MemoryEstimate, estimate_memory, measure_rows
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.model_shape import ModelShape
from finetune_trainer.training.steps import resolve_accumulation

_MIN_GAIN = 0.95
"""Settings that take more than this fraction of the time are not worth a change."""
_SHARDING_RANKS = (2, 4, 8)
_MAX_BATCH = 1024
"""Largest `batchSize` and `gradientAccumulation` of the API."""
_RESULT_NOTES = {
    "model.quantization": "quantization rounds the base model, so losses differ",
    "training.batching": "byLength combines other rows into batches, so losses of single steps differ",
}

Fields = Mapping[str, str | int | bool]
"""Values of fields of a manifest by their path, such as `training.batchSize`."""


@dataclass(frozen=True)
class RunSize:
    """What the memory of a run depends on besides its config."""

    shape: ModelShape
    lengths: Lengths
    """Tokens of each row."""
    ranks: int = 1
    """Number of ranks, one for each GPU."""
    is_sharded: bool = False
    """Whether the ranks share the base model."""

    def estimate(self, config: TrainerConfig) -> MemoryEstimate:
        """Return the memory that each GPU needs for a config."""
        rows = measure_rows(config, self.lengths)
        return estimate_memory(config, self.shape, rows, self.ranks if self.is_sharded else 1)


@dataclass(frozen=True)
class FittingSettings:
    """Settings that fit, with what they change."""

    fields: Fields
    """The fields that differ from the manifest; empty if it fits as written."""
    memory: MemoryEstimate
    relative_time: float
    """Time of a training on each GPU as a fraction of that of the settings as written."""

    @property
    def notes(self) -> list[str]:
        """What the settings change about the result, besides the order of rounding."""
        changed = {**self.fields}
        if changed.get("training.batching") == "paddingFree":
            del changed["training.batching"]
        return [note for field, note in _RESULT_NOTES.items() if field in changed]


class _Candidate(NamedTuple):
    config: TrainerConfig
    size: RunSize


def find_fastest(config: TrainerConfig, size: RunSize, capacity: float) -> FittingSettings | None:
    """Return the fastest settings that fit GPUs of `capacity` bytes and keep the rows of each step, if the config fits
    as written. Returns None if it does not fit."""
    written = _Candidate(config, size)
    as_written = _assess(written, written)
    if not as_written.memory.fits(capacity):
        return None
    candidates = [_assess(written, each) for each in _vary(config, size, _list_batchings(written))]
    faster = [each for each in candidates if each.relative_time < _MIN_GAIN and each.memory.fits(capacity)]
    return min(faster, key=_rank, default=as_written)


def find_nearest(config: TrainerConfig, size: RunSize, capacity: float) -> FittingSettings | None:
    """Return the settings nearest to the config that fit GPUs of `capacity` bytes and keep the rows of each step.

    These are tried in this order: a smaller batch and gradient checkpointing, quantization to nf4, and a base model
    that is sharded over more GPUs. Of the settings of a kind the fastest is returned, or None if nothing fits.
    """
    written, batchings = _Candidate(config, size), [config.training.batching]
    kinds = [
        _vary(config, size, batchings),
        _vary(_quantize(config), size, batchings) if _can_quantize(config, size) else iter(()),
        *(_shard(config, size, ranks) for ranks in _SHARDING_RANKS if ranks >= size.ranks),
    ]
    for kind in kinds:
        fitting = [each for each in (_assess(written, candidate) for candidate in kind) if each.memory.fits(capacity)]
        if fitting:
            return min(fitting, key=_rank)
    return None


def _rank(settings: FittingSettings) -> tuple[float, int, float]:
    """Return the order of settings: by time to 5 %, then by the number of changes. Of equal ones, the first has the
    largest batch."""
    return round(settings.relative_time * 20), len(settings.fields), settings.relative_time


def _assess(written: _Candidate, candidate: _Candidate) -> FittingSettings:
    time = _estimate_work(candidate) / _estimate_work(written)
    return FittingSettings(_list_changes(written, candidate), candidate.size.estimate(candidate.config), time)


def _estimate_work(candidate: _Candidate) -> float:
    """Return the tokens that each GPU computes, multiplied by the passes: forward, backward, and the recomputation."""
    config, size = candidate
    passes = get_method(config).forward_passes + 1 + config.training.gradient_checkpointing
    return passes * count_computed_tokens(config, size.lengths) / size.ranks


def _list_batchings(written: _Candidate) -> list[str | None]:
    """Return the values of `training.batching` with the same rows in each step. With `packed`, a step has as many rows
    as fit into its sequences. With `paddingFree`, backend auto would no longer choose Unsloth, which is faster."""
    training, size = written.config.training, written.size
    if training.effective_batching == "packed" or training.method not in ("sft", "dpo"):
        return [training.batching]
    may_use_unsloth = training.backend == "auto" and training.kernels == "standard" and size.ranks == 1
    joins_rows = training.method == "sft" and not may_use_unsloth and "packs" not in size.shape.unsupported
    return [training.batching, "byLength", *(["paddingFree"] if joins_rows else [])]


def _vary(config: TrainerConfig, size: RunSize, batchings: Iterable[str | None]) -> Iterator[_Candidate]:
    """Yield the config with other batch sizes, with and without gradient checkpointing, and with each batching."""
    training = config.training
    rows = training.batch_size * resolve_accumulation(training, size.ranks)
    batch_sizes = [each for each in range(min(rows, _MAX_BATCH), 0, -1) if _can_split(training, rows, each)]
    if get_method(config).compares_rows:
        batch_sizes = [training.batch_size]
    for batch_size, recomputes, batching in product(batch_sizes, (False, True), batchings):
        changes: dict[str, Any] = {"batch_size": batch_size, "gradient_checkpointing": recomputes, "batching": batching}
        if training.global_batch_size is None:
            changes["gradient_accumulation"] = rows // batch_size
        yield _Candidate(config.model_copy(update={"training": training.model_copy(update=changes)}), size)


def _can_split(training: Training, rows: int, batch_size: int) -> bool:
    """Return whether the API accepts a batch size with which a step has so many rows."""
    is_limited = training.global_batch_size is None
    return rows % batch_size == 0 and not (is_limited and rows // batch_size > _MAX_BATCH)


def _can_quantize(config: TrainerConfig, size: RunSize) -> bool:
    is_refused = config.output.merged or size.is_sharded or "nf4" in size.shape.unsupported
    return config.model.quantization == "none" and not is_refused


def _quantize(config: TrainerConfig) -> TrainerConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"quantization": "nf4"})})


def _shard(config: TrainerConfig, size: RunSize, ranks: int) -> Iterator[_Candidate]:
    """Yield settings with the same rows per step on more GPUs that share the base model, if the run supports that."""
    training = config.training
    rows = training.batch_size * resolve_accumulation(training, size.ranks) * size.ranks
    is_refused = "shards" in size.shape.unsupported or bool(list_unsupported_settings(config))
    if rows % ranks or is_refused or (size.is_sharded and ranks == size.ranks):
        return
    changes: dict[str, Any] = {"batch_size": 1}
    if training.global_batch_size is None:
        changes["gradient_accumulation"] = rows // ranks
    split = training.model_copy(update=changes)
    sharded = replace(size, ranks=ranks, is_sharded=True)
    yield from _vary(config.model_copy(update={"training": split}), sharded, [training.batching])


def _list_changes(written: _Candidate, candidate: _Candidate) -> Fields:
    """Return the fields of the manifest that differ."""
    old, new = written.config.to_json(), candidate.config.to_json()
    changes: dict[str, str | int | bool] = {
        f"{section}.{name}": value
        for section in ("model", "training")
        for name, value in new[section].items()
        if old[section].get(name) != value
    }
    if candidate.size.ranks != written.size.ranks or candidate.size.is_sharded != written.size.is_sharded:
        nodes = {"compute.nodes": 1} if written.size.ranks > 1 else {}
        changes |= {**nodes, "compute.gpusPerNode": candidate.size.ranks, "compute.sharding": "full"}
    return changes
