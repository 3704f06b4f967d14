"""Checks before the first step that each batch has other rows to compare a row with."""

from __future__ import annotations

from finetune_trainer.contract import Reason
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.state import TrainerInputs


def check_batches(inputs: TrainerInputs) -> list[PreflightFinding]:
    """Return a warning if the last batch of an epoch has a single row, for a method that compares the rows of a batch.

    `kto` then measures the divergence from the reference model with the answer itself. Raises `CONFIG_INVALID` for a
    dataset of one row.
    """
    training, rows = inputs.config.training, len(inputs.prepared.dataset)
    if not get_method(inputs.config).compares_rows:
        return []
    if rows == 1:
        message = f"training.method: {training.method} compares the rows of a batch, but there is 1 row; add rows"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    if rows % training.batch_size != 1 or topology.world_size() > 1:
        return []
    message = (
        f"the last batch of an epoch has 1 of {rows} rows, which {training.method} cannot compare with another; set "
        f"training.batchSize to another value than {training.batch_size}"
    )
    return [PreflightFinding(check="batches", status="warning", message=message, value=1)]
