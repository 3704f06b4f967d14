"""Kahneman-Tversky optimization (Ethayarajh et al., 2024, https://arxiv.org/abs/2402.01306)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.preferences import parse_labeled_examples
from finetune_trainer.data.row_columns import RowColumns
from finetune_trainer.data.row_types import LabeledExample, Row
from finetune_trainer.training.methods.base import Collator, PreferenceMethod

if TYPE_CHECKING:
    import torch

    from finetune_trainer.training.state import TrainerInputs
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer


class KTO(PreferenceMethod):
    """Kahneman-Tversky optimization on answers that are each labeled as desirable or undesirable.

    As for DPO, TRL 1.14.2 computes the loss from the logits that the model returns.
    """

    name = "kto"
    title = "Kahneman-Tversky optimization"
    token_columns: Mapping[str, str] = {"prompt_ids": "ids", "completion_ids": "ids", "label": "bool"}
    compares_rows = True

    def parse_row(self, row: RowColumns, _: str) -> Sequence[Row]:
        return parse_labeled_examples(row)

    def name_answers(self, row: Row, answers: Sequence[list[int]]) -> dict[str, object]:
        return {"completion_ids": answers[0], "label": isinstance(row, LabeledExample) and row.desirable}

    def build_collator(self, inputs: TrainerInputs) -> Collator:
        from finetune_trainer.modeling.positions import get_max_positions

        max_positions = get_max_positions(inputs.loaded.model.get_base_model().config)
        return KTODataCollator(inputs.loaded.tokenizer.pad_token_id, max_positions)

    def build_trainer(self, inputs: TrainerInputs) -> TokenizedTrainer:
        import torch
        from trl import KTOConfig, KTOTrainer

        from finetune_trainer.training.tokenized_trainer import TokenizedTrainer
        from finetune_trainer.training.trl_arguments import build_common_arguments

        class TokenizedKTOTrainer(TokenizedTrainer, KTOTrainer):  # type: ignore[misc]  # TRL is published without types
            """TRL's trainer, on tokenized rows."""

        self.disable_dropout(inputs)
        training, rows = inputs.config.training, inputs.prepared.dataset
        # TRL only accepts a sequential order of rows, so they are shuffled here, once for all epochs.
        permutation = torch.randperm(len(rows), generator=torch.Generator().manual_seed(training.seed))
        arguments = build_common_arguments(inputs.config, len(rows), inputs.work_dir)
        return TokenizedKTOTrainer(
            **inputs.trainer_arguments,
            args=KTOConfig(**arguments, beta=training.beta, max_length=None, train_sampling_strategy="sequential"),
            train_dataset=rows.select(permutation.tolist()),
            data_collator=self.build_collator(inputs),
        )


@dataclass(frozen=True)
class KTODataCollator:
    """Pairs each prompt also with the answer of the previous row of the batch, for the KL term of the loss. TRL does
    this when it prepares a dataset.

    The prompt and answer of one row fit into the model's positions, but those of two rows may not. Such an answer is
    truncated.
    """

    pad_token_id: int
    max_positions: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

        rows_with_kl = [
            {**row, "KL_completion_ids": self._truncate_kl_completion(row, rows[index - 1])}
            for index, row in enumerate(rows)
        ]
        batch: dict[str, torch.Tensor] = DataCollatorForUnpairedPreference(pad_token_id=self.pad_token_id)(rows_with_kl)
        return batch

    def _truncate_kl_completion(self, row: Mapping[str, Any], previous_row: Mapping[str, Any]) -> Sequence[int]:
        answer: Sequence[int] = previous_row["completion_ids"]
        return answer if self.max_positions is None else answer[: self.max_positions - len(row["prompt_ids"])]
