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
"""Share of the tokens that must be the most likely ones."""
_TOLERANCE = 0.05
"""How far a token may be below the highest logit, relative to the distance of that one from the mean. A cache in 16
bits rounds otherwise than a forward pass, which decides between tokens of nearly equal likelihood."""
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
    matches = [
        is_likely
        for prompt, answer in zip(prompts, answers, strict=True)
        for is_likely in _find_likely(trainer, prompt, answer)
    ]
    return sum(matches) / len(matches)


def _find_likely(trainer: TokenizedTrainer, prompt: list[int], answer: list[int]) -> list[bool]:
    """Return for each token of the answer whether it is the most likely one after the tokens before it."""
    ids = torch.tensor([[*prompt, *answer]], device=trainer.model.device)
    with torch.no_grad():
        outputs = trainer.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    logits = outputs.logits[0, len(prompt) - 1 : -1].float()
    highest, mean = logits.max(-1).values, logits.mean(-1)
    chosen = logits.gather(-1, ids[0, len(prompt) :, None])[:, 0]
    likely: list[bool] = (highest - chosen <= _TOLERANCE * (highest - mean)).tolist()
    return likely


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
