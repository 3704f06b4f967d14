"""Recommends settings for each common GPU: the fastest ones that fit, or the nearest ones if a run does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from pydantic import Field

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.contract.base import Model
from finetune_trainer.formatting import format_bytes
from finetune_trainer.training.fitting_settings import FittingSettings, RunSize, find_fastest, find_nearest
from finetune_trainer.training.memory_check import describe_value
from finetune_trainer.training.memory_needs import GPU_SIZES_GB


class Recommendation(Model):
    """Settings for a GPU. They keep the rows of each optimizer step."""

    gpu_gigabytes: int
    """Memory of the GPU, in units of 10^9 bytes."""
    fits: bool
    """Whether the run fits as written, with a tenth free."""
    fields: dict[str, str | int | bool] = Field(default={})
    """Fields of the manifest to change, by path. Empty if no change is faster, or if nothing fits."""
    estimated_memory: int | None = None
    """Peak memory with these fields, in bytes. None if nothing fits."""
    estimated_relative_time: float = 1
    """Training time with these fields as a fraction of that as written."""
    notes: list[str] = Field(default=[])
    """What the fields change about the result."""


def recommend_settings(config: TrainerConfig, size: RunSize) -> list[Recommendation]:
    """Return one recommendation for each common GPU."""
    return [_recommend_for(config, size, gigabytes) for gigabytes in GPU_SIZES_GB]


def _recommend_for(config: TrainerConfig, size: RunSize, gigabytes: int) -> Recommendation:
    fastest = find_fastest(config, size, gigabytes * 1e9)
    settings = fastest or find_nearest(config, size, gigabytes * 1e9)
    if settings is None:
        return Recommendation(gpu_gigabytes=gigabytes, fits=False)
    return _build_recommendation(settings, gigabytes, fits=fastest is not None)


def _build_recommendation(settings: FittingSettings, gigabytes: int, fits: bool) -> Recommendation:
    return Recommendation(
        gpu_gigabytes=gigabytes,
        fits=fits,
        fields=dict(settings.fields),
        estimated_memory=settings.memory.total,
        estimated_relative_time=round(settings.relative_time, 2),
        notes=settings.notes,
    )


def format_recommendations(recommendations: Sequence[Recommendation]) -> str:
    """Return the recommendations as text, with manifest fields in YAML. Empty if there is nothing to change."""
    groups = groupby(recommendations, key=lambda each: (each.fits, each.fields, each.estimated_memory))
    return "\n".join(line for _, group in groups for line in _format_group(list(group)))


def _format_group(group: Sequence[Recommendation]) -> Iterator[str]:
    """Yield the lines of GPUs with the same recommendation."""
    first, gpus = group[0], ", ".join(f"{each.gpu_gigabytes} GB" for each in group)
    if first.estimated_memory is None:
        yield f"# {gpus}: nothing fits; lower model.maxLength, or use a smaller model or more GPUs"
    elif first.fields:
        verb = "fits; faster" if first.fits else "does not fit; fits"
        share = f"{first.estimated_relative_time:.0%} of the time".replace("%", " %")
        yield f"# {gpus}: {verb} with ~ {format_bytes(first.estimated_memory)} and ~ {share}:"
        yield from _format_fields(first)
        yield from (f"# {note}" for note in first.notes)


def _format_fields(recommendation: Recommendation) -> Iterator[str]:
    """Yield the fields as YAML, one line for each section of the spec."""
    paths = sorted(path.split(".") for path in recommendation.fields)
    for section, names in groupby(paths, key=lambda path: path[0]):
        values = [f"{name}: {describe_value(recommendation.fields[f'{section}.{name}'])}" for _, name in names]
        yield f"  {section}: {{{', '.join(values)}}}"
