"""Checks before the first step that the model runs, and that it does not see the tokens that it predicts.

A model that sees later tokens learns to copy them: its loss falls, but it cannot generate text. Imports torch, so
import this module only after the backend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finetune_trainer.contract import Reason
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.likelihood import LabeledTokens
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.preflight.packing import compute_token_log_probs
from finetune_trainer.training.preflight.sample import Sample, select_tolerance

_TOLERANCES = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 5e-3, "int8": 0.2}
"""Nats by which the log-probability of a token may change, on average. It changes by less than 2e-6 in 32 bits.
Experts may round a token depending on the number of tokens that they process. Attention to later tokens
changes it by 0.15 or more, unless the logits are almost constant as in a model with initial weights."""
_MIN_TOKENS = 8
"""A shorter row is repeated."""


@dataclass(frozen=True)
class _Effect:
    """The log-probabilities of the first tokens of a row before and after the others are changed."""

    original: torch.Tensor
    changed: torch.Tensor

    @property
    def mean_change(self) -> float:
        """Mean absolute change per token, in nats."""
        return float((self.original - self.changed).abs().mean())


@dataclass(frozen=True)
class CausalityCheck:
    """Computes a row in the mode of the training and in that of the evaluation. All ranks must run it."""

    sample: Sample

    def run(self) -> list[PreflightFinding]:
        """Change the last tokens of a row, and compare the log-probabilities of those before them.

        Raises `MODEL_UNSUPPORTED` if they change, or if the model fails on the row for another reason than the machine.
        """
        input_ids = self._select_tokens()
        with self.sample.training_mode():  # some models use another attention mask when they are trained
            training = self._measure_effect(input_ids)
        evaluation = self._measure_effect(input_ids)
        effect = max(training, evaluation, key=lambda effect: effect.mean_change)
        if collectives.all_reduce_any(not math.isfinite(effect.mean_change))[0]:
            return []  # the training itself handles a loss that is not finite
        limit = select_tolerance(self.sample.config, _TOLERANCES)
        if collectives.all_reduce_any(effect.mean_change > limit)[0]:
            raise TrainerError(Reason.MODEL_UNSUPPORTED, self._build_error_message(effect))
        message = f"tokens do not depend on the tokens after them ({effect.mean_change:.2g} nats per token)"
        return [PreflightFinding(check="causality", status="passed", message=message, value=effect.mean_change)]

    def _select_tokens(self) -> list[int]:
        row = self.sample.rows[0]
        input_ids = list(row["input_ids"]) if "input_ids" in row else [*row["prompt_ids"], *self.sample.get_answer(row)]
        return (input_ids * _MIN_TOKENS)[: max(len(input_ids), _MIN_TOKENS)]

    def _measure_effect(self, input_ids: Sequence[int]) -> _Effect:
        """Change the last quarter of the tokens."""
        kept = len(input_ids) * 3 // 4
        candidates = [*input_ids, self.sample.trainer.processing_class.eos_token_id]
        changed = [next(other for other in candidates if other != token) for token in input_ids[kept:]]
        log_probs = (self._compute_log_probs(tokens) for tokens in (input_ids, [*input_ids[:kept], *changed]))
        return _Effect(*(values[: kept - 1] for values in log_probs))  # the first token is not predicted

    def _compute_log_probs(self, input_ids: Sequence[int]) -> torch.Tensor:
        tokens = torch.tensor([input_ids], device=self.sample.trainer.model.device)
        torch.manual_seed(0)  # the same dropout and noise of routers for all tokens
        with self.sample.translate_errors("forward pass"):
            logits = self.sample.trainer.model(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
            ).logits
        self.sample.heartbeat()
        return compute_token_log_probs(logits[0], LabeledTokens(input_ids, input_ids))

    def _build_error_message(self, effect: _Effect) -> str:
        losses = [-float(log_probs.mean()) for log_probs in (effect.original, effect.changed)]
        return (
            f"{self.sample.model_class} sees the tokens that it predicts: the loss of the first {len(effect.original)} "
            f"tokens of a row is {losses[0]:.6g}, and {losses[1]:.6g} after the tokens behind them are changed (by "
            f"{effect.mean_change:.3g} nats per token), so it would learn to copy them and could not generate text; "
            "use a base model with causal attention"
        )
