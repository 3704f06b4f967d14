"""Tests of AdamW with moments in 8 bits, which bitsandbytes computes on a CPU too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.tiny_training import RunTraining

if TYPE_CHECKING:
    import torch
    from bitsandbytes.functional import QuantState

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

LEARNING_RATE, WEIGHT_DECAY, BETAS, EPSILON = 1e-2, 0.1, (0.9, 0.999), 1e-8
BLOCK_SIZE = 256


class QuantizedMoment:
    """A moment of AdamW that bitsandbytes stores in 8 bits between steps, in blocks with a scale each (Dettmers et al.,
    2021, section 2, https://arxiv.org/abs/2110.02861)."""

    def __init__(self, beta: float, signed: bool, size: int) -> None:
        import torch
        from bitsandbytes import functional

        self._beta = beta
        self._code = functional.create_dynamic_map(signed=signed)
        self._stored = self._quantize(torch.zeros(size))

    def update(self, value: torch.Tensor) -> torch.Tensor:
        """Return the moment after a step, before it is rounded."""
        from bitsandbytes import functional

        moment = self._beta * functional.dequantize_blockwise(*self._stored) + (1 - self._beta) * value
        self._stored = self._quantize(moment)
        return moment

    def _quantize(self, moment: torch.Tensor) -> tuple[torch.Tensor, QuantState]:
        from bitsandbytes import functional

        quantized: tuple[torch.Tensor, QuantState] = functional.quantize_blockwise(
            moment, code=self._code, blocksize=BLOCK_SIZE
        )
        return quantized


def test_8bit_optimizer_equals_its_definition() -> None:
    import torch
    from bitsandbytes.optim import AdamW

    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4096, generator=generator))
    expected = weight.detach().clone()
    optimizer = AdamW([weight], LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, optim_bits=8)
    first, second = QuantizedMoment(BETAS[0], True, 4096), QuantizedMoment(BETAS[1], False, 4096)
    for step in range(1, 9):
        weight.grad = torch.randn(4096, generator=generator)
        mean, variance = first.update(weight.grad), second.update(weight.grad**2)
        correction = math.sqrt(1 - BETAS[1] ** step)
        update = mean / (variance.sqrt() + EPSILON * correction) * correction / (1 - BETAS[0] ** step)
        expected = expected * (1 - LEARNING_RATE * WEIGHT_DECAY) - LEARNING_RATE * update
        optimizer.step()
        assert float((weight.detach() - expected).abs().max()) < 1e-6


def test_8bit_optimizer_trains_like_32_bits(run: RunTraining) -> None:
    import torch

    runs = {name: run(optimizer=name, lora={"rank": 96}, maxSteps=6, save_at=6) for name in ("adamw", "adamw8bit")}
    assert runs["adamw8bit"].losses != runs["adamw"].losses
    assert runs["adamw8bit"].losses == pytest.approx(runs["adamw"].losses, rel=0.02)
    checkpoint = runs["adamw8bit"].folder / "trainer" / "checkpoint-6" / "optimizer.pt"
    states = torch.load(checkpoint, weights_only=True, mmap=True)["state"].values()
    moments = [state["__bnb_optimizer_quant_state__"]["state1"] for state in states]
    assert {moment.dtype for moment in moments} == {torch.uint8, torch.float32}, "small tensors have 32 bits"
