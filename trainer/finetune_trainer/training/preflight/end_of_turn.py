"""Checks that the published model stops where the answers of the training data end.

Imports torch, so import this module only after the backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from finetune_trainer.contract import Reason
from finetune_trainer.data.end_of_turn import detect_end_of_turn
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import format_share
from finetune_trainer.modeling.generation import collect_end_token_ids
from finetune_trainer.modeling.sharding import gather_tensor
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.state import TrainerInputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MIN_RELATIVE_NORM = 0.1
"""Norm of an embedding relative to the median, below which the token was probably never trained."""


def check_end_of_turn(inputs: TrainerInputs) -> list[PreflightFinding]:
    """Compare the tokens that end answers in the rows with those that the published model stops at.

    The published generation config and the evaluation use the same tokens (`collect_end_token_ids`). Truncated rows are
    not compared, because they end within an answer. Warns about a token that the base model probably never trained.
    Raises `MODEL_UNSUPPORTED` if an answer ends in a token that no server stops at.
    """
    answer_ends, tokenizer = inputs.prepared.answer_ends, inputs.loaded.tokenizer
    if not answer_ends:
        return []
    stop_ids = collect_end_token_ids(inputs.loaded.model, tokenizer)
    wrong_ends = {id_: count for id_, count in answer_ends.items() if id_ not in stop_ids}
    if wrong_ends:
        message = _build_error_message(tokenizer, wrong_ends, stop_ids, sum(answer_ends.values()))
        raise TrainerError(Reason.MODEL_UNSUPPORTED, message)
    finding = PreflightFinding(
        check="endOfTurn", status="passed", message=_describe_ends(tokenizer, sorted(answer_ends))
    )
    trainable_tokens = inputs.config.training.lora.trainable_tokens
    untrained = [
        PreflightFinding(check="endOfTurn", status="warning", message=_build_warning(name))
        for token_id, name in zip(answer_ends, tokenizer.convert_ids_to_tokens(list(answer_ends)), strict=True)
        if name not in trainable_tokens and _is_probably_untrained(inputs, token_id)
    ]
    return [finding, *untrained]


def _describe_ends(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    message = f"answers end with {_format_tokens(tokenizer, token_ids)}, where the published model stops"
    if tokenizer.chat_template and detect_end_of_turn(tokenizer).stop_token_id is None:
        message += "; the chat template ends answers with no token of the vocabulary, so the EOS token is used instead"
    return message


def _format_tokens(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    names = tokenizer.convert_ids_to_tokens(list(token_ids))
    return ", ".join(f"{name} (ID {token_id})" for name, token_id in zip(names, token_ids, strict=True))


def _build_error_message(
    tokenizer: PreTrainedTokenizerBase, wrong_ends: dict[int, int], stop_ids: Sequence[int], answer_count: int
) -> str:
    wrong_count = sum(wrong_ends.values())
    return (
        f"{wrong_count} of {answer_count} answers ({format_share(wrong_count, answer_count)}) end with "
        f"{_format_tokens(tokenizer, sorted(wrong_ends)[:5])}, but the published model stops only at "
        f"{_format_tokens(tokenizer, stop_ids)}, so it would not stop; set model.chatTemplate to a template that ends "
        "answers with one of these tokens, or use a base model with another eos_token"
    )


def _build_warning(name: str) -> str:
    return (
        f"answers end with {name}, whose embedding looks as if the base model was never trained on it, so the model "
        f"may not learn to stop; add {name} to training.lora.trainableTokens"
    )


def _is_probably_untrained(inputs: TrainerInputs, token_id: int) -> bool:
    """Return whether the embedding of a token is almost zero, or equal to that of another token."""
    with torch.no_grad():
        weight = gather_tensor(inputs.loaded.model.get_input_embeddings().weight)
        norms = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
        if norms[token_id] < _MIN_RELATIVE_NORM * norms.median():
            return True
        similar_ids = (norms == norms[token_id]).nonzero().flatten()
        return int((weight[similar_ids] == weight[token_id]).all(dim=1).sum()) > 1
