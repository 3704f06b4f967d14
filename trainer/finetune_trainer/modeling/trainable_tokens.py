"""Finds the rows of the embeddings that `training.lora.trainableTokens` trains. Heavy imports happen inside
functions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def resolve_token_indices(config: TrainerConfig, base: PreTrainedModel, model_dir: Path) -> dict[str, list[int]] | None:
    """Return the token IDs by the path of the embedding, and of the output head unless both share their weights.

    A token that the base model was never trained on needs both: one to read it and the other to write it. PEFT treats
    shared weights by itself. Raises `CONFIG_INVALID` for a text that is not one token.
    """
    tokens = config.training.lora.trainable_tokens
    if not tokens:
        return None
    token_ids = _find_token_ids(tokens, model_dir)
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    modules = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    if modules[-1] is head and head.bias is not None:  # PEFT's layer computes no bias
        raise _invalid_tokens(f"the output head of {type(base).__name__} has a bias, which PEFT does not support")
    log.warning(
        "training.lora.trainableTokens: vLLM cannot load an adapter with trained embeddings; set output.merged to true "
        "to serve the model"
    )
    return {_find_path(base, module): token_ids for module in modules}


def _find_path(base: PreTrainedModel, module: torch.nn.Module) -> str:
    paths: dict[torch.nn.Module, str] = {other: path for path, other in base.named_modules()}
    return paths[module]


def _find_token_ids(tokens: list[str], model_dir: Path) -> list[int]:
    """Return sorted token IDs, so that the adapter does not depend on the order of the setting.

    The tokenizer is loaded again: it takes a second, and only this setting needs it between the backend and PEFT.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False, local_files_only=True)
    return sorted({_find_token_id(token, tokenizer) for token in tokens})


def _find_token_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    token_ids = tokenizer.encode(token, add_special_tokens=False)
    if len(token_ids) == 1:
        return int(token_ids[0])
    parts = tokenizer.convert_ids_to_tokens(token_ids)
    raise _invalid_tokens(f"{token!r} is not one token of the vocabulary, it splits into {parts}; name single tokens")


def _invalid_tokens(problem: str) -> TrainerError:
    return TrainerError(Reason.CONFIG_INVALID, f"training.lora.trainableTokens: {problem}")
