"""Reports whether rows and tokens fit into the model. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.batching import measure_lengths

if TYPE_CHECKING:
    from finetune_trainer.training.state import TrainerInputs


def check_sizes(inputs: TrainerInputs) -> list[PreflightFinding]:
    """Compare the longest row with the positions of the model, and the vocabulary with its embedding.

    Raises `CONFIG_INVALID` if a row is longer than the positions. Loading the model has compared the vocabulary.
    """
    return [_check_positions(inputs), _describe_vocabulary(inputs)]


def _check_positions(inputs: TrainerInputs) -> PreflightFinding:
    longest = int(measure_lengths(inputs.prepared.dataset).max())
    positions = get_max_positions(inputs.loaded.model.get_base_model().config)
    if positions is None:
        message = f"the longest row has {longest} tokens, the model does not limit positions"
        return PreflightFinding(check="positions", status="passed", message=message, value=longest)
    message = f"the longest row has {longest} tokens, the model has {positions} positions"
    if longest > positions:
        raise TrainerError(Reason.CONFIG_INVALID, f"{message}; set model.maxLength to {positions} or less")
    return PreflightFinding(check="positions", status="passed", message=message, value=longest, expected=positions)


def _describe_vocabulary(inputs: TrainerInputs) -> PreflightFinding:
    highest_id = max(inputs.loaded.tokenizer.get_vocab().values())
    rows = inputs.loaded.model.get_input_embeddings().weight.shape[0]
    message = f"the tokenizer's highest token ID is {highest_id}, the model has embeddings for {rows} tokens"
    return PreflightFinding(check="vocabulary", status="passed", message=message, value=highest_id, expected=rows)
