"""The interface of a training method, and what the preference methods have in common."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import TrainerConfig, Training
from finetune_trainer.data.loss_masking import IGNORE_INDEX, TokenizedConversation
from finetune_trainer.data.row_schema import RowSchema, TokenColumns
from finetune_trainer.data.row_types import Row
from finetune_trainer.distributed import topology
from finetune_trainer.training.steps import resolve_accumulation

if TYPE_CHECKING:
    import datasets
    import torch

    from finetune_trainer.training.length_sampler import LengthSampler
    from finetune_trainer.training.state import TrainerInputs
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

log = logging.getLogger(__name__)

Collator = Callable[[Sequence[Mapping[str, Any]]], "dict[str, torch.Tensor]"]
"""Makes a batch of tokenized rows."""


def build_row_sampler(
    inputs: TrainerInputs, rows: datasets.Dataset, padding_row_count: int = 0
) -> torch.utils.data.Sampler[int] | None:
    """Return what yields the row numbers of each epoch, with those of the padding rows last, or None for the random
    order of transformers."""
    from accelerate.data_loader import SeedableRandomSampler

    from finetune_trainer.training.padding_rows import PaddingRowsLastSampler

    training = inputs.config.training
    if training.effective_batching == "byLength":
        sampler: LengthSampler | SeedableRandomSampler = _build_length_sampler(training, rows)
    elif padding_row_count:
        sampler = SeedableRandomSampler(range(len(rows)), data_seed=training.seed)
    else:
        return None
    return PaddingRowsLastSampler(sampler, padding_row_count) if padding_row_count else sampler


def _build_length_sampler(training: Training, rows: datasets.Dataset) -> LengthSampler:
    from finetune_trainer.training.batching import measure_lengths
    from finetune_trainer.training.length_sampler import LengthSampler

    world_size = topology.world_size()
    step_rows = training.batch_size * resolve_accumulation(training, world_size) * world_size
    return LengthSampler(measure_lengths(rows), training.batch_size, step_rows, training.seed)


class TrainingMethod(RowSchema):
    """What data preparation, training, planning, evaluation and reports need to know about a training method.

    The methods import torch and TRL inside functions only, so that data preparation, planning and evaluation can ask
    for their properties without these libraries.
    """

    name: str
    """The value of `training.method`."""
    title: str
    """The name of the method in reports."""
    beta_applies: bool = True
    """Whether the loss depends on `training.beta`."""
    uses_token_loss: bool = False
    """Whether the loss is the cross-entropy of the supervised tokens. Evaluation measures such a loss for each row;
    of other methods it reports the loss that the training measured."""
    extra_metrics: Mapping[str, str] = {}
    """Metrics that the training measures on the validation data besides `evalLoss`, where a higher value is better:
    the name in results, and TRL's name of the mean over a batch."""
    measures_loss: bool = True
    """Whether the loss of held-out rows is measured. Methods that generate answers have no such loss."""
    compares_rows: bool = False
    """Whether the loss of a row depends on the other rows of its batch."""
    forward_passes: int = 1
    """Forward passes per training step: a second one computes the likelihoods of the reference model."""
    sequences_per_row: int = 1
    """Sequences that a row of a batch becomes."""
    chunks_logits: bool = False
    """Whether the loss is computed in chunks, without the logits of all tokens at once."""

    @property
    def metrics(self) -> list[str]:
        """The metrics of the evaluation that every run of this method has."""
        losses = ["evalLoss"] if self.measures_loss else []
        return [*losses, *(["perplexity"] if self.uses_token_loss else []), *self.extra_metrics]

    def copies_adapter(self, _: TrainerConfig) -> bool:
        """Whether a frozen copy of the adapter that the training starts from is kept as the reference model."""
        return False

    @abstractmethod
    def build_collator(self, inputs: TrainerInputs) -> Collator:
        """Return the data collator for rows as they were prepared."""

    @abstractmethod
    def build_trainer(self, inputs: TrainerInputs) -> TokenizedTrainer:
        """Return TRL's trainer of the method, on the rows as they were prepared."""


class PreferenceMethod(TrainingMethod):
    """A method that trains on preferences between answers; by default with a reference model."""

    forward_passes = 2

    def copies_adapter(self, config: TrainerConfig) -> bool:
        """A new adapter equals the base model, so it needs no copy."""
        return config.model.adapter_uri is not None and config.training.reference == "initial"

    def detect_format(self, _: Mapping[str, Any]) -> str:
        return "preference"

    def build_columns(self, row: Row, conversations: Sequence[TokenizedConversation]) -> TokenColumns | str:
        prompts = [conversation.input_ids[: conversation.answer_start] for conversation in conversations]
        answers = [_extract_answer(conversation) for conversation in conversations]
        # An answer that lost its start by truncation does not count, even if earlier answers remain.
        if not all(answers):
            return "noSupervisedTokens"
        if prompts[0] != prompts[-1]:
            return "promptsDiffer"
        if len(answers) == 2 and answers[0] == answers[1]:
            return "identicalAnswers"
        supervised_tokens = sum(map(len, answers))
        columns = {"prompt_ids": prompts[0], **self.name_answers(row, answers)}
        return TokenColumns(columns, len(prompts[0]) + supervised_tokens, supervised_tokens)

    @abstractmethod
    def name_answers(self, row: Row, answers: Sequence[list[int]]) -> dict[str, object]:
        """Return the columns of a row except for its prompt, from the tokens of its answers."""

    def disable_dropout(self, inputs: TrainerInputs) -> None:
        """Disable the dropout of adapter and base model, and log a warning if one is configured for the adapter.

        The likelihoods under the model and its reference would have different noise.
        """
        from finetune_trainer.training.dropout import disable_dropout

        if inputs.config.training.lora.dropout:
            log.warning("%s: dropout is disabled, so training.lora.dropout has no effect", self.name)
        disable_dropout(inputs.loaded.model)


def _extract_answer(conversation: TokenizedConversation) -> list[int]:
    """Return the tokens of the last answer, without those that the chat template writes after the end of the turn."""
    supervised_indices = [
        index
        for index, label in enumerate(conversation.labels)
        if label != IGNORE_INDEX and index >= conversation.answer_start
    ]
    return conversation.input_ids[conversation.answer_start : supervised_indices[-1] + 1] if supervised_indices else []
