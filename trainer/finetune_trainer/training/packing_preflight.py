"""Checks that a model keeps packed rows apart, before the first step. Imports TRL, so import this module only after the
backend.

Many architectures ignore that positions start again, on which packing relies: some masks know nothing of positions, and
the state of a recurrent layer passes from row to row.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import datasets
import torch

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.likelihood import Tokens
from finetune_trainer.training import packing
from finetune_trainer.training.loss_preflight import ROWS, evaluation_mode, learnt_part, tolerance
from finetune_trainer.training.trl_methods import Sft

log = logging.getLogger(__name__)

_TOKENS = 64
"""Of a row."""
_INFLUENCE = {"fp32": 1e-3, "bf16": 0.01, "fp16": 0.01, "int8": 0.2}
"""Nats by which a token may change when the rows before it change, on average over a row. In models that keep rows
apart nothing changes, since all else stays the same."""
_DIFFERENCE = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.2, "int8": 0.2}
"""The same between a packed row and the row alone, which is rounded in another way."""


@dataclass(frozen=True)
class _Compared:
    """A row packed and otherwise, by the logarithm of each token's probability."""

    packed: torch.Tensor
    other: torch.Tensor

    @property
    def change(self) -> float:
        """Of a token on average; a mean over rows, or of gains and losses, can hide what a neighbour changes."""
        return float((self.packed - self.other).abs().mean())


@dataclass(frozen=True)
class PackingCheck:
    """The check of one training, in all of its workers at once."""

    trainer: Sft
    config: TrainerConfig
    rows: datasets.Dataset
    """As they were prepared, not packed."""
    pad: int
    alive: Callable[[], None]

    def run(self) -> None:
        """Compare rows in packed sequences with the same alone. Raises `CONFIG_INVALID` if the model mixes them."""
        sequences = self.trainer.train_dataset[packing.ROWS]
        numbers = next((each for each in sequences if len(each) > 1), None)
        if numbers is None:
            return  # no row shares a sequence with another
        self._check_takes_positions()
        parts = [learnt_part(self.rows[number], _TOKENS) for number in numbers[:ROWS]]
        with evaluation_mode(self.trainer):
            influenced, different = self._compare([parts, parts[::-1]])
        allowed = (tolerance(self.config, each) for each in (_INFLUENCE, _DIFFERENCE))
        if collectives.any_of(any(not a.change <= b for a, b in zip((influenced, different), allowed, strict=True)))[0]:
            raise TrainerError(Reason.CONFIG_INVALID, _message(influenced, different))
        log.info("preflight: packed rows do not change each other (a token by %.2g nats)", influenced.change)

    def _check_takes_positions(self) -> None:
        model = self.trainer.model.get_base_model()
        parameters = inspect.signature(model.forward).parameters
        others = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        if "position_ids" not in parameters and not others:
            message = (
                f"training.packing: {type(model).__name__} takes no positions, so it cannot keep packed rows apart; "
                "set training.packing to false"
            )
            raise TrainerError(Reason.CONFIG_INVALID, message)

    def _compare(self, orders: Sequence[Sequence[Tokens]]) -> tuple[_Compared, _Compared]:
        """The last rows of sequences with the same after other rows, and all rows but the first ones with the same
        alone: of both the row that changes most."""
        packed = self._packed(orders)
        changed = self._packed([[*map(_backwards, order[:-1]), order[-1]] for order in orders])
        influenced = [_Compared(first[-1], second[-1]) for first, second in zip(packed, changed, strict=True)]
        different = [
            _Compared(found, self._alone(part))
            for order, sequence in zip(orders, packed, strict=True)
            for part, found in list(zip(order, sequence, strict=True))[1:]
        ]
        return max(influenced, key=_change), max(different, key=_change)

    def _packed(self, sequences: Sequence[Sequence[Tokens]]) -> list[list[torch.Tensor]]:
        """Of each row of each sequence; batches are not larger than in the training."""
        size = min(self.config.training.batch_size, len(sequences))
        batches = [sequences[start : start + size] for start in range(0, len(sequences), size)]
        return [found for batch in batches for found in self._batch(batch)]

    def _batch(self, sequences: Sequence[Sequence[Tokens]]) -> list[list[torch.Tensor]]:
        flat = [{"input_ids": part.input_ids, "labels": part.labels} for sequence in sequences for part in sequence]
        numbers = iter(range(len(flat)))
        collate = packing.Collator(datasets.Dataset.from_list(flat), self.pad)
        batch = collate([{packing.ROWS: [next(numbers) for _ in sequence]} for sequence in sequences])
        logits = self._logits({name: batch[name] for name in ("input_ids", "position_ids")})
        return [_by_row(line, sequence) for line, sequence in zip(logits, sequences, strict=True)]

    def _alone(self, part: Tokens) -> torch.Tensor:
        return _likelihoods(self._logits({"input_ids": torch.tensor([part.input_ids])})[0], part)

    def _logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.alive()
        on_device = {name: each.to(self.trainer.model.device) for name, each in inputs.items()}
        logits: torch.Tensor = self.trainer.model(**on_device, use_cache=False).logits
        return logits


def _change(compared: _Compared) -> float:
    return compared.change


def _backwards(part: Tokens) -> Tokens:
    """Other tokens in the same places."""
    return Tokens(part.input_ids[::-1], part.labels)


def _by_row(logits: torch.Tensor, parts: Sequence[Tokens]) -> list[torch.Tensor]:
    ends = list(accumulate(len(part.input_ids) for part in parts))
    lines = (logits[start:end] for start, end in zip([0, *ends], ends, strict=False))
    return [_likelihoods(line, part) for line, part in zip(lines, parts, strict=True)]


def _likelihoods(logits: torch.Tensor, part: Tokens) -> torch.Tensor:
    """The logarithm of each token's, but for the first."""
    targets = torch.tensor(part.input_ids[1:], device=logits.device)
    return -torch.nn.functional.cross_entropy(logits[:-1].float(), targets, reduction="none")


def _message(influenced: _Compared, different: _Compared) -> str:
    packed, alone = -float(different.packed.mean()), -float(different.other.mean())
    return (
        f"training.packing: this model mixes packed rows: the loss of a row is {packed:.6g} packed and {alone:.6g} "
        f"alone, and a token of it changes by {influenced.change:.3g} nats with the rows before it; set "
        "training.packing to false"
    )
