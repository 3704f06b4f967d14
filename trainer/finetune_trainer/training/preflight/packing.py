"""Checks before the first step that packed rows do not influence each other.

Batching `packed` and `paddingFree` rely on position IDs that restart with each row, which many architectures ignore:
some attention masks do not depend on positions, and the state of a recurrent layer passes from row to row. Imports
torch, so import this module only after the backend.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter

import torch

from finetune_trainer.contract import Reason
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.likelihood import LabeledTokens
from finetune_trainer.modeling.row_sharing import RowSharing
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training import packing
from finetune_trainer.training.preflight.library_errors import translate_computation_errors
from finetune_trainer.training.preflight.sample import Sample, select_tolerance

_INFLUENCE_TOLERANCES = {"fp32": 1e-5, "bf16": 5e-4, "fp16": 5e-4, "int8": 0.2}
"""Nats by which the log-probability of a token may change when the rows before it change, on average over a row. It
does not change at all if the model separates rows. The state of a recurrent layer that fades quickly changes it by as
little as 0.0013 nats."""
_DIFFERENCE_TOLERANCES = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.2, "int8": 0.2}
"""Nats by which a packed row may differ from the row alone, which is rounded differently."""


@dataclass(frozen=True)
class _LogProbPair:
    """The log-probabilities of the tokens of a packed row and of a reference. Both have the shape (tokens - 1,)."""

    packed: torch.Tensor
    reference: torch.Tensor

    @property
    def mean_change(self) -> float:
        """Mean absolute change per token. A mean over rows, or of signed changes, could hide an influence."""
        return float((self.packed - self.reference).abs().mean())


@dataclass(frozen=True)
class PackingCheck:
    """Checks that rows which share sequences in a training do not mix, in evaluation mode. All ranks must run it."""

    sample: Sample
    sharing: RowSharing

    def run(self) -> list[PreflightFinding]:
        """Compare packed rows with the same rows alone. Raises `CONFIG_INVALID` if the model mixes them."""
        self._check_accepts_position_ids()
        if not self.sample.shares_sequences:
            return []
        config, rows = self.sample.config, self.sample.labeled_rows
        influence, difference = self._compare_log_probs([rows, rows[::-1]])
        limits = (
            select_tolerance(config, tolerances) for tolerances in (_INFLUENCE_TOLERANCES, _DIFFERENCE_TOLERANCES)
        )
        if collectives.all_reduce_any(
            any(not effect.mean_change <= limit for effect, limit in zip((influence, difference), limits, strict=True))
        )[0]:
            message = f"{self.sharing.setting}: {_describe_influence(influence, difference)}; {self.sharing.advice}"
            raise TrainerError(Reason.CONFIG_INVALID, message)
        message = f"packed rows do not influence each other ({influence.mean_change:.2g} nats per token)"
        return [PreflightFinding(check="packing", status="passed", message=message, value=influence.mean_change)]

    def _check_accepts_position_ids(self) -> None:
        model = self.sample.trainer.model.get_base_model()
        parameters = inspect.signature(model.forward).parameters
        accepts_kwargs = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if "position_ids" not in parameters and not accepts_kwargs:
            message = (
                f"{self.sharing.setting}: {type(model).__name__} accepts no position IDs, so it cannot separate packed "
                f"rows; {self.sharing.advice}"
            )
            raise TrainerError(Reason.CONFIG_INVALID, message)

    def _compare_log_probs(self, orders: Sequence[Sequence[LabeledTokens]]) -> tuple[_LogProbPair, _LogProbPair]:
        """Return the row that changes most when the rows before it change, and the packed row that differs most from
        the same row alone."""
        packed_log_probs = self._compute_packed_log_probs(orders)
        perturbed_log_probs = self._compute_packed_log_probs(
            [[*map(_reverse_tokens, order[:-1]), order[-1]] for order in orders]
        )
        influences = [
            _LogProbPair(original[-1], perturbed[-1])
            for original, perturbed in zip(packed_log_probs, perturbed_log_probs, strict=True)
        ]
        differences = [
            _LogProbPair(log_probs, self._compute_single_row_log_probs(row))
            for order, sequence in zip(orders, packed_log_probs, strict=True)
            for row, log_probs in list(zip(order, sequence, strict=True))[1:]
        ]
        by_change = attrgetter("mean_change")
        return max(influences, key=by_change), max(differences, key=by_change)

    def _compute_packed_log_probs(self, sequences: Sequence[Sequence[LabeledTokens]]) -> list[list[torch.Tensor]]:
        """Return the log-probabilities of each row of each sequence. Batches have at most as many sequences as in
        training."""
        batch_size = min(self.sample.sequences_per_batch, len(sequences))
        batches = [sequences[start : start + batch_size] for start in range(0, len(sequences), batch_size)]
        return [sequence_log_probs for batch in batches for sequence_log_probs in self._compute_batch_log_probs(batch)]

    def _compute_batch_log_probs(self, sequences: Sequence[Sequence[LabeledTokens]]) -> list[list[torch.Tensor]]:
        pad_token_id = self.sample.trainer.processing_class.pad_token_id
        batch = packing.collate_sequences([list(map(vars, sequence)) for sequence in sequences], pad_token_id)
        logits = self._compute_logits({name: batch[name] for name in ("input_ids", "position_ids")})
        return [
            _split_log_probs_by_row(sequence_logits, sequence)
            for sequence_logits, sequence in zip(logits, sequences, strict=True)
        ]

    def _compute_single_row_log_probs(self, row: LabeledTokens) -> torch.Tensor:
        return compute_token_log_probs(self._compute_logits({"input_ids": torch.tensor([row.input_ids])})[0], row)

    def _compute_logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.sample.heartbeat()
        model = self.sample.trainer.model
        device_inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        computation = f"{self.sharing.setting}: the forward pass of {self.sample.model_class} on packed rows"
        with translate_computation_errors(computation, Reason.CONFIG_INVALID, self.sharing.advice):
            logits: torch.Tensor = model(**device_inputs, use_cache=False).logits
        return logits


def _reverse_tokens(row: LabeledTokens) -> LabeledTokens:
    """Return a row of the same length with other tokens."""
    return LabeledTokens(row.input_ids[::-1], row.labels)


def _split_log_probs_by_row(logits: torch.Tensor, rows: Sequence[LabeledTokens]) -> list[torch.Tensor]:
    """Return the log-probabilities of each row of a packed sequence, from logits of shape (tokens, vocabulary)."""
    ends = list(accumulate(len(row.input_ids) for row in rows))
    logits_per_row = (logits[start:end] for start, end in zip([0, *ends], ends, strict=False))
    return [compute_token_log_probs(row_logits, part) for row_logits, part in zip(logits_per_row, rows, strict=True)]


def compute_token_log_probs(logits: torch.Tensor, row: LabeledTokens) -> torch.Tensor:
    """Return the log-probability of each token but the first: shape (tokens - 1,), from logits (tokens, vocabulary)."""
    targets = torch.tensor(row.input_ids[1:], device=logits.device)
    return -torch.nn.functional.cross_entropy(logits[:-1].float(), targets, reduction="none")


def _describe_influence(influence: _LogProbPair, difference: _LogProbPair) -> str:
    packed_loss, single_loss = -float(difference.packed.mean()), -float(difference.reference.mean())
    return (
        f"this model mixes packed rows: the loss of a row is {packed_loss:.6g} packed and {single_loss:.6g} alone, and "
        f"its tokens change by {influence.mean_change:.3g} nats with the rows before it"
    )
