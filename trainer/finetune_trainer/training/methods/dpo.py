"""Direct preference optimization (Rafailov et al., 2023, https://arxiv.org/abs/2305.18290)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from finetune_trainer.data.preferences import parse_preference
from finetune_trainer.data.row_columns import RowColumns
from finetune_trainer.data.row_types import Row
from finetune_trainer.distributed import topology
from finetune_trainer.training.methods.base import Collator, PreferenceMethod, build_row_sampler

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.training.state import TrainerInputs
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer


class DPO(PreferenceMethod):
    """Direct preference optimization on pairs of a chosen and a rejected answer.

    TRL 1.14.2 computes the loss from the logits that the model returns. It reads the weights of the output head only
    with `use_liger_kernel`, which is never set, so there is no other implementation to check before training.
    """

    name = "dpo"
    title = "direct preference optimization"
    token_columns: Mapping[str, str] = {"prompt_ids": "ids", "chosen_ids": "ids", "rejected_ids": "ids"}
    extra_metrics: Mapping[str, str] = {"evalRewardAccuracy": "rewards/accuracies"}
    sequences_per_row = 2

    def parse_row(self, row: RowColumns, _: str) -> list[Row]:
        return [parse_preference(row)]

    def name_answers(self, _: Row, answers: Sequence[list[int]]) -> dict[str, object]:
        return {"chosen_ids": answers[0], "rejected_ids": answers[1]}

    def build_collator(self, inputs: TrainerInputs) -> Collator:
        from finetune_trainer.training.methods.dpo_trainer import PaddingRowCollator

        collator: Collator = PaddingRowCollator(inputs.loaded.tokenizer.pad_token_id)
        return collator

    def build_trainer(self, inputs: TrainerInputs) -> TokenizedTrainer:
        from trl import DPOConfig

        from finetune_trainer.training.methods.dpo_trainer import TokenizedDPOTrainer
        from finetune_trainer.training.trl_arguments import build_common_arguments

        self.disable_dropout(inputs)
        rows, padding_row_count = _pad_rows(inputs)
        arguments = build_common_arguments(inputs.config, len(rows), inputs.work_dir)
        trainer = TokenizedDPOTrainer(
            **inputs.trainer_arguments,
            args=DPOConfig(**arguments, beta=inputs.config.training.beta, max_length=None),
            train_dataset=rows,
            data_collator=self.build_collator(inputs),
        )
        trainer.row_sampler = build_row_sampler(inputs, inputs.prepared.dataset, padding_row_count)
        trainer.padding_row_count = padding_row_count
        return trainer


def _pad_rows(inputs: TrainerInputs) -> tuple[datasets.Dataset, int]:
    """Add padding rows if the rows of a step must not depend on the number of ranks. Otherwise accelerate repeats the
    first rows of an epoch in its last batches."""
    from finetune_trainer.training.padding_rows import pad_dataset

    training = inputs.config.training
    if topology.world_size() == 1 or training.global_batch_size is None:
        return inputs.prepared.dataset, 0
    rows_per_pass = training.batch_size * topology.world_size()
    return pad_dataset(inputs.prepared.dataset, rows_per_pass, inputs.loaded.tokenizer.pad_token_id)
