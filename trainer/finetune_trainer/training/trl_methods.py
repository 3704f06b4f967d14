"""TRL's trainers for rows that are ready. Imports TRL, so import this module only after the backend."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from trl import DPOTrainer, KTOTrainer, SFTTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from finetune_trainer.checkpoints.store import COUNTS_NAME, FOLD_LOSSES_KEY
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.training.early_stopping import EvalResult
from finetune_trainer.training.energy import EnergyMeter
from finetune_trainer.training.padding_rows import PaddingRowsLastSampler


class TokenCounter:
    """What went through a trainer. Sums stay on the device until somebody asks, so that the GPU need not wait."""

    def __init__(self, device: torch.device) -> None:
        self._started_at = time.monotonic()
        self._sums = torch.zeros(2, dtype=torch.int64, device=device)
        self.eval_results: list[EvalResult] = []
        self.energy_meter = EnergyMeter()
        self.fold_losses: Sequence[float] = ()

    def add(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count a batch; a packed one says its number of tokens, which is no input of the model's."""
        is_supervised = inputs["labels"] != IGNORE_INDEX if "labels" in inputs else inputs["completion_mask"]
        if "token_count" in inputs:
            tokens = inputs.pop("token_count")
        else:  # a row that nothing is learnt from only fills a batch up
            tokens = (inputs["attention_mask"] * is_supervised.any(-1, keepdim=True)).sum()
        self._sums += torch.stack([tokens.to(self._sums.device), is_supervised.sum().to(self._sums.device)])

    @property
    def tokens(self) -> int:
        """Trained so far by all workers, without padding. All have to ask at once."""
        return int(collectives.all_reduce_sum(self._sums)[0])

    @property
    def supervised_tokens(self) -> int:
        """Learnt so far by all workers. All have to ask at once."""
        return int(collectives.all_reduce_sum(self._sums)[1])

    @property
    def elapsed_seconds(self) -> float:
        """Spent so far, by earlier attempts up to the checkpoint that was gone on from too."""
        return time.monotonic() - self._started_at

    def save(self, checkpoint: Path) -> None:
        """Beside the rest of the checkpoint, by the first worker: those of a node share the folder."""
        content = {
            "tokens": self.tokens,
            "supervised": self.supervised_tokens,
            "seconds": self.elapsed_seconds,
            "looks": [result.to_json() for result in self.eval_results],
            "wattHours": self.energy_meter.measure().watt_hours,
            FOLD_LOSSES_KEY: list(self.fold_losses),
        }
        if topology.is_rank_zero():
            (checkpoint / COUNTS_NAME).write_text(json.dumps(content), encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Go on counting where the checkpoint was saved, in one worker."""
        content = json.loads((checkpoint / COUNTS_NAME).read_text(encoding="utf-8"))
        if topology.is_rank_zero():
            self._sums += torch.tensor([content["tokens"], content["supervised"]], device=self._sums.device)
            self.energy_meter.restore(content.get("wattHours"))
        self._started_at -= content["seconds"]
        self.eval_results = [EvalResult.from_json(result) for result in content["looks"]]


class _TokenCountingMixin:
    """What all three have in common; stands before TRL's class."""

    _tr_loss: torch.Tensor
    """transformers' own, of the steps that were not logged yet."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.token_counter = TokenCounter(kwargs["args"].device)

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any, **__: Any) -> datasets.Dataset:
        return dataset  # TRL would tokenise, cut and drop

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Not for each checkpoint: nobody stores it, and TRL's imports a tracker."""

    def training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *args: Any) -> torch.Tensor:
        self.token_counter.add(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args)  # type: ignore[misc]
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A step's loss. transformers subtracts it from itself to begin the next with nothing, which leaves NaN there
        for good after a step whose loss is no number."""
        super().log(logs, start_time)  # type: ignore[misc]
        self._tr_loss.zero_()


class TokenizedSFTTrainer(_TokenCountingMixin, SFTTrainer):  # type: ignore[misc]  # TRL is published without types
    """Supervised fine-tuning."""

    padding_row_count = 0
    """The last rows of the data that only fill up the batches of an epoch's end."""

    def __init__(self, **kwargs: Any) -> None:
        self._unpatched_forward = vars(kwargs["model"].get_base_model()).get("forward")
        super().__init__(**kwargs)

    def use_full_logits(self) -> None:
        """Compute the loss from the model's logits (`nll`) instead of from its head's weights (`chunked_nll`), for
        which TRL has replaced the `forward` of this one model object."""
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


# TRL 1.14.2 computes the losses of DPO and KTO from the logits that the model returns; only with `use_liger_kernel`,
# which we never set, does it read the head's weights. So there is nothing to compare with the model's own logits.
class TokenizedDPOTrainer(_TokenCountingMixin, DPOTrainer):  # type: ignore[misc]
    """Direct preference optimisation."""


class TokenizedKTOTrainer(_TokenCountingMixin, KTOTrainer):  # type: ignore[misc]
    """Kahneman-Tversky optimisation."""


@dataclass(frozen=True)
class KTODataCollator:
    """Pairs each prompt also with the answer of the row before it in the batch, as TRL does beforehand.

    Prompt and answer of a row fit the model's positions, those of two rows together may not: such an answer is cut.
    """

    pad_token_id: int
    max_positions: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows_with_kl = [
            {**row, "KL_completion_ids": self._truncate_kl_completion(row, rows[index - 1])}
            for index, row in enumerate(rows)
        ]
        collated: dict[str, Any] = DataCollatorForUnpairedPreference(pad_token_id=self.pad_token_id)(rows_with_kl)
        return collated

    def _truncate_kl_completion(self, row: Mapping[str, Any], previous_row: Mapping[str, Any]) -> Sequence[int]:
        answer: Sequence[int] = previous_row["completion_ids"]
        return answer if self.max_positions is None else answer[: self.max_positions - len(row["prompt_ids"])]
