"""TRL's trainer of supervised fine-tuning, on tokenized rows. Imports TRL, so import it only after the backend."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from trl import SFTTrainer

from finetune_trainer.training.padding_rows import PaddingRowsLastSampler
from finetune_trainer.training.tokenized_trainer import TokenizedTrainer


class TokenizedSFTTrainer(TokenizedTrainer, SFTTrainer):  # type: ignore[misc]  # TRL is published without types
    """TRL's trainer, with padding rows and a choice between two implementations of the loss."""

    padding_row_count = 0
    """The number of rows at the end of the dataset that only fill the last batches of an epoch."""

    def __init__(self, **kwargs: Any) -> None:
        self._unpatched_forward = vars(kwargs["model"].get_base_model()).get("forward")
        super().__init__(**kwargs)

    def use_full_logits(self) -> None:
        """Compute the loss from the model's logits (`nll`) instead of the weights of its output head (`chunked_nll`),
        for which TRL has replaced the `forward` of this model object."""
        base_model = self.model.get_base_model()
        if self._unpatched_forward is None:
            vars(base_model).pop("forward", None)
        else:
            base_model.forward = self._unpatched_forward
        self.args.loss_type = "nll"

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> torch.utils.data.Sampler[int]:
        if not self.padding_row_count:
            sampler: torch.utils.data.Sampler[int] = super()._get_train_sampler(train_dataset)
            return sampler
        return PaddingRowsLastSampler(len(self.train_dataset), self.padding_row_count, self.args.data_seed)
