"""Advice on the learning rates of a sweep, by published evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

EVIDENCED_RANGE = (1e-4, 1e-3)
"""Lowest and highest learning rate that published measurements of LoRA found best for most models."""


class Source(NamedTuple):
    """A publication."""

    title: str
    url: str


SOURCES = (
    Source("LoRA Without Regret", "https://thinkingmachines.ai/blog/lora/"),
    Source("Learning Rate Matters: Vanilla LoRA May Suffice", "https://arxiv.org/abs/2602.04998"),
)


def advise_on_learning_rates(tried: Sequence[float], best: float) -> list[str]:
    """Return sentences about a best learning rate at the edge of the tried ones, or outside of the evidenced range."""
    advice = []
    if len(set(tried)) > 1 and best == max(tried):
        advice.append(f"The best value, {best:g}, is the largest that was tried. Try larger ones, too.")
    if len(set(tried)) > 1 and best == min(tried):
        advice.append(f"The best value, {best:g}, is the smallest that was tried. Try smaller ones, too.")
    if not EVIDENCED_RANGE[0] <= best <= EVIDENCED_RANGE[1]:
        advice.append(f"The best value, {best:g}, is unusual. Check the number of steps and the batch size.")
    return advice
