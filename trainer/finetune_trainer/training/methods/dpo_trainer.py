"""TRL's trainer of direct preference optimization, on tokenized rows. Imports TRL, so import it only after the
backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from finetune_trainer.distributed import collectives, topology
from finetune_trainer.training.tokenized_trainer import TokenizedTrainer, disable_gather


class PaddingRowCollator(DataCollatorForPreference):  # type: ignore[misc]  # TRL is published without types
    """TRL's collator, without the padding rows of a batch that also has other rows."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call([row for row in examples if row["chosen_ids"]] or examples[:1])
        return batch


class TokenizedDPOTrainer(TokenizedTrainer, DPOTrainer):  # type: ignore[misc]  # TRL is published without types
    """TRL's trainer, with padding rows at the end of an epoch.

    TRL's loss of a step is the mean of the means of its batches. Batches of padding rows have a weight of zero, so a
    step of several ranks has the loss that a single process computes from the same batches.
    """

    padding_row_count = 0
    """The number of rows at the end of the dataset that only fill the last batches of an epoch."""

    _batch_weight = 1.0
    """Weight of the batches of the current step that are not made of padding rows."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """Return the batches of a step, as transformers does, and weight them by the number of real ones."""
        batches, item_count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.padding_row_count:
            real_count = torch.tensor(sum(not _is_padding(batch) for batch in batches))
            all_count = len(batches) * topology.world_size()
            self._batch_weight = all_count / int(collectives.all_reduce_sum(real_count))
        return batches, item_count

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the weighted loss of a batch. An evaluation has no padding rows, so its losses have no weight."""
        if not self.padding_row_count or not model.training:
            loss: torch.Tensor | tuple[torch.Tensor, Any] = super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch
            )
            return loss
        with disable_gather(self):  # TRL would gather metrics of rows, and the last batches differ in size
            batch_loss: torch.Tensor = super().compute_loss(model, inputs, False, num_items_in_batch)
        return batch_loss * (0.0 if _is_padding(inputs) else self._batch_weight)


def _is_padding(batch: dict[str, torch.Tensor]) -> bool:
    return not batch["completion_mask"].any()
