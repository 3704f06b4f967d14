"""The base class of all trainers. Imports transformers, so import this module only after the backend."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import Trainer

from finetune_trainer.checkpoints.layout import COUNTS_NAME, FOLD_LOSSES_KEY
from finetune_trainer.contract import Training
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.modeling.sharding import average_gradients, is_sharded
from finetune_trainer.training import random_states
from finetune_trainer.training.early_stopping import EvalResult
from finetune_trainer.training.energy import EnergyMeter
from finetune_trainer.training.reference_adapter import REFERENCE_ADAPTER
from finetune_trainer.training.row_losses import RowLossHistory
from finetune_trainer.training.schedule import build_schedule
from finetune_trainer.training.step_stop import StepEvaluation

_STOP_EVALUATION_KEY = "stopEvaluation"
"""Key in the counts of a checkpoint: the evaluation of a training that stopped there."""


class TokenCounter:
    """Counts the tokens, time and energy of a training. Sums stay on the device until they are read, so that the GPU
    does not have to synchronize in every step."""

    def __init__(self, device: torch.device) -> None:
        self._started_at = time.monotonic()
        self._sums = torch.zeros(2, dtype=torch.int64, device=device)
        self.eval_results: list[EvalResult] = []
        self.row_losses = RowLossHistory()
        self.energy_meter = EnergyMeter()
        self.fold_losses: Sequence[float] = ()
        self.stop_evaluation: StepEvaluation | None = None

    def add(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count a batch, whose tensors have the shape (sequences, tokens). Removes `token_count` and `supervised_count`
        of a batch of shared sequences, because the model does not accept them."""
        if "token_count" in inputs:
            counts = [inputs.pop("token_count"), inputs.pop("supervised_count")]
        else:
            is_supervised = inputs["labels"] != IGNORE_INDEX if "labels" in inputs else inputs["completion_mask"]
            is_row = is_supervised.any(-1, keepdim=True)  # a row without supervised tokens is padding
            counts = [(inputs["attention_mask"] * is_row).sum(), is_supervised.sum()]
        self._sums += torch.stack([count.to(self._sums.device) for count in counts])

    @property
    def tokens(self) -> int:
        """Trained tokens of all ranks so far, without padding. A collective operation: all ranks must call it."""
        return int(collectives.all_reduce_sum(self._sums)[0])

    @property
    def supervised_tokens(self) -> int:
        """Supervised tokens of all ranks so far. A collective operation: all ranks must call it."""
        return int(collectives.all_reduce_sum(self._sums)[1])

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of training so far, including earlier attempts up to the checkpoint that was resumed from."""
        return time.monotonic() - self._started_at

    def save(self, checkpoint: Path) -> None:
        """Write the counts into a checkpoint. Only rank 0 writes: the ranks of a node share the folder."""
        content = {
            "tokens": self.tokens,
            "supervised": self.supervised_tokens,
            "seconds": self.elapsed_seconds,
            "looks": [result.to_json() for result in self.eval_results],
            "rowLosses": self.row_losses.to_json(),
            "wattHours": self.energy_meter.measure().watt_hours,
            FOLD_LOSSES_KEY: list(self.fold_losses),
        }
        if self.stop_evaluation and self.stop_evaluation.is_finite:
            content[_STOP_EVALUATION_KEY] = self.stop_evaluation.to_json()
        if topology.is_rank_zero():
            (checkpoint / COUNTS_NAME).write_text(json.dumps(content), encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Continue counting from a checkpoint. Only rank 0 adds its counts, because reading sums over all ranks."""
        content = json.loads((checkpoint / COUNTS_NAME).read_text(encoding="utf-8"))
        if topology.is_rank_zero():
            self._sums += torch.tensor([content["tokens"], content["supervised"]], device=self._sums.device)
            self.energy_meter.restore(content.get("wattHours"))
        self._started_at -= content["seconds"]
        self.eval_results = [EvalResult.from_json(result) for result in content["looks"]]
        self.row_losses = RowLossHistory.from_json(content["rowLosses"])
        if _STOP_EVALUATION_KEY in content:
            self.stop_evaluation = StepEvaluation.from_json(content[_STOP_EVALUATION_KEY])


class TokenizedTrainer(Trainer):  # type: ignore[misc]  # transformers' types are not followed
    """Trains on tokenized rows without changing them, and counts their tokens. Subclasses name it before TRL's class:
    `class TokenizedDPOTrainer(TokenizedTrainer, DPOTrainer)`."""

    _tr_loss: torch.Tensor
    """The loss of the steps that were not logged yet, an attribute of transformers' Trainer."""
    row_sampler: torch.utils.data.Sampler[int] | None = None
    """Yields the row numbers of each epoch. None: those of TRL's trainer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.token_counter = TokenCounter(kwargs["args"].device)
        self._averages_gradients = is_sharded(kwargs["model"]) and topology.world_size() > 1
        if self._averages_gradients:
            # Without DistributedDataParallel, which does not accept sharded weights.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.schedule_settings: Training | None = None

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any, **__: Any) -> datasets.Dataset:
        return dataset  # TRL would tokenize, truncate and drop rows

    def _get_train_sampler(self, *args: Any) -> torch.utils.data.Sampler[int]:
        sampler: torch.utils.data.Sampler[int] = self.row_sampler or super()._get_train_sampler(*args)
        return sampler

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Return the schedule of `schedule_settings`, if transformers does not have it, or else that of `args`."""
        settings = self.schedule_settings
        schedule = None if settings is None else build_schedule(settings, num_training_steps)
        if schedule is None:
            transformers_schedule: LRScheduler = super().create_scheduler(num_training_steps, optimizer)
            return transformers_schedule
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, schedule.compute_factor)
        return self.lr_scheduler

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no model card: checkpoints need none, and TRL's imports a tracker."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save only the trained adapter. PEFT saves the reference to a subfolder, and transformers would then resume
        with the adapters in subfolders only."""
        super()._save(output_dir, state_dict)
        reference_dir = Path(output_dir or self.args.output_dir) / REFERENCE_ADAPTER
        if reference_dir.is_dir():
            shutil.rmtree(reference_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random state of this rank, or seed it if another number of ranks saved the checkpoint."""
        if checkpoint is None or random_states.fits_rank_count(Path(checkpoint)):
            super()._load_rng_state(checkpoint)
        else:
            random_states.seed_rank(Path(checkpoint), self.args.seed)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *args: Any) -> torch.Tensor:
        self.count_tokens(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args)
        if self._averages_gradients and self.accelerator.sync_gradients:
            average_gradients(self.model)
        return loss

    def set_heartbeat(self, heartbeat: Callable[[], None]) -> None:
        """Set what is called within long steps, so that they do not count as stalled. Most methods have none."""

    def count_tokens(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count the tokens of a batch, before the model computes it."""
        self.token_counter.add(inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step, then reset its loss. transformers subtracts the loss from itself, which keeps NaN forever after
        one step with a non-finite loss."""
        super().log(logs, start_time)
        self._tr_loss.zero_()


@contextmanager
def disable_gather(trainer: TokenizedTrainer) -> Iterator[None]:
    """Make TRL compute a loss without communication between ranks.

    It would gather values of each row for its metrics, which needs batches of the same size in all ranks, and for `kto`
    a mean that the loss depends on, so that the loss of the same rows would change with the number of ranks.
    """
    accelerator = trainer.accelerator
    accelerator.gather = accelerator.gather_for_metrics = lambda tensor: tensor
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
