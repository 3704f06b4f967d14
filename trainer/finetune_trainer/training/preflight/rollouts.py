"""Checks before the first step that the answers of a rollout are those of the model that learns.

Imports torch, so import this module only after the backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.preflight.adapter_reload import randomize_weights

if TYPE_CHECKING:
    from finetune_trainer.training.state import TrainerInputs
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

_PROMPTS = 4
_MAX_PROMPT_TOKENS = 64
_NEW_TOKENS = 8
_MIN_SHARE = 0.9
"""Share of the tokens that must be the most likely ones. Rounding decides between tokens of equal likelihood."""
_HIGH_LEARNING_RATE = 5e-5


def check_rollouts(trainer: TokenizedTrainer, inputs: TrainerInputs) -> Iterator[PreflightFinding]:
    """Compare generated tokens with the likelihoods of the training, for an adapter that changes the model.

    Raises `MODEL_UNSUPPORTED` if answers are not those of the adapter: the training would learn from the answers of
    another model, with plausible losses (https://github.com/unslothai/unsloth/pull/8701).
    """
    prompts = [row[-_MAX_PROMPT_TOKENS:] for row in inputs.prepared.dataset[:_PROMPTS]["prompt_ids"]]
    with torch.random.fork_rng(), randomize_weights(trainer.model, 0.1):
        share = _measure_agreement(trainer, prompts)
    message = f"{share:.0%} of the generated tokens are the most likely ones of the model with its adapter"
    if share < _MIN_SHARE:
        advice = "use another base model, or another version of the libraries"
        raise TrainerError(Reason.MODEL_UNSUPPORTED, f"rollouts: only {message}; {advice}")
    yield PreflightFinding(check="rollouts", status="passed", message=message, value=share, expected=_MIN_SHARE)
    yield from _check_learning_rate(inputs)


def _measure_agreement(trainer: TokenizedTrainer, prompts: Sequence[list[int]]) -> float:
    """Return the share of greedily generated tokens that a forward pass without padding gives the highest logit."""
    config = trainer.generation_config
    settings = config.do_sample, config.max_new_tokens
    config.do_sample, config.max_new_tokens = False, _NEW_TOKENS
    try:
        answers = trainer.generate_answers(prompts)
    finally:
        config.do_sample, config.max_new_tokens = settings
    matches: list[bool] = [
        token == best
        for prompt, answer in zip(prompts, answers, strict=True)
        for token, best in zip(answer, _predict(trainer, prompt, answer), strict=True)
    ]
    return sum(matches) / len(matches)


def _predict(trainer: TokenizedTrainer, prompt: list[int], answer: list[int]) -> list[int]:
    """Return the most likely token at each position of the answer."""
    ids = torch.tensor([[*prompt, *answer]], device=trainer.model.device)
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    best: list[int] = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    return best


def _check_learning_rate(inputs: TrainerInputs) -> Iterator[PreflightFinding]:
    rate = inputs.config.training.learning_rate
    if rate > _HIGH_LEARNING_RATE:
        yield PreflightFinding(
            check="learningRate",
            status="warning",
            message=f"training.learningRate {rate:g} is high for {inputs.config.training.method} with LoRA, which is "
            f"usually trained with 1e-5 to {_HIGH_LEARNING_RATE:g}; watch reward and entropy for a collapse",
            value=rate,
            expected=_HIGH_LEARNING_RATE,
        )
