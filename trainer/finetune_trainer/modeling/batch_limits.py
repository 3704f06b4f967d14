"""Limits of the batches of the evaluation, so that it needs at most the memory of a training step. Without torch, so
that `plan` can count them."""

from __future__ import annotations

import math

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling.positions import limit_max_length

LOGIT_CHUNK_TOKENS = 256
"""Number of supervised tokens whose logits are in memory at once, as in TRL's chunked loss."""
MAX_LOSS_TOKENS = 2048
"""Tokens of a batch whose losses are computed, including padding. A longer row is a batch of its own."""
MAX_GENERATION_PROMPTS = 8
"""Prompts that are answered at once."""
MAX_GENERATION_TOKENS = 4096
"""Tokens of prompts and answers in the key-value cache, including padding. A longer prompt is a batch of its own."""

MAX_RAISED_NEW_TOKENS = 1024
"""Length up to which `evaluation.maxNewTokens` is raised for long answers in the data."""


def limit_new_tokens(config: TrainerConfig) -> int:
    """Return the maximum length of a generated answer, in tokens, before the length of the data's answers is known."""
    max_new_tokens = choose_new_tokens(config, 0)
    return max(max_new_tokens, MAX_RAISED_NEW_TOKENS) if config.evaluation.scores_answers else max_new_tokens


def choose_new_tokens(config: TrainerConfig, longest_answer: int) -> int:
    """Return the maximum length of a generated answer if the longest answer of the data has `longest_answer` tokens."""
    allowed = min(longest_answer + math.ceil(longest_answer / 4), MAX_RAISED_NEW_TOKENS)
    training = config.training
    # What is rewarded is measured: an answer of the training may not be cut in the evaluation.
    rollout = training.effective_rollout.max_new_tokens if training.is_policy_method else 0
    return max(config.evaluation.max_new_tokens, allowed, rollout)


def limit_loss_tokens(config: TrainerConfig, positions: int | None) -> int:
    """Return the maximum number of tokens of a batch, which is at most that of a forward pass of the training."""
    limited = limit_max_length(config, positions)
    return min(MAX_LOSS_TOKENS, limited.training.batch_size * limited.model.max_length)
