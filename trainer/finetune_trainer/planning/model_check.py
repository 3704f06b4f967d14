"""Loads the base model for `plan --check` and runs the preflight checks. Import this module only after the backend."""

from __future__ import annotations

import logging
from pathlib import Path

from finetune_trainer.formatting import format_bytes
from finetune_trainer.inputs.base_model import S3ModelSource
from finetune_trainer.modeling import loading
from finetune_trainer.modeling.positions import limit_max_length
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.planning.inspection import InspectedInputs
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.storage import check_disk_space
from finetune_trainer.training.check import check_training
from finetune_trainer.training.memory_check import measure_capacity
from finetune_trainer.training.memory_needs import FREE_SHARE, estimate_base_bytes

log = logging.getLogger(__name__)


def check_model(inputs: InspectedInputs) -> list[PreflightFinding]:
    """Run the checks, or return a warning if this machine has too little memory for the base model.

    Raises the errors that the run would raise before its first step.
    """
    memory_finding = _check_memory(inputs)
    if memory_finding is not None:
        return [memory_finding]
    config = limit_max_length(inputs.config, inputs.shape.max_positions)
    loaded = loading.load_with_tokenizer(config, _fetch_weights(inputs), inputs.backend, inputs.files.adapter_dir)
    return check_training(config, loaded, inputs.prepared, inputs.work_dir)


def _check_memory(inputs: InspectedInputs) -> PreflightFinding | None:
    """Return a warning if the base model does not fit the free memory, otherwise None."""
    precision = resolve_precision(inputs.config)
    training = inputs.config.training.model_copy(update={"precision": precision})
    base_bytes = estimate_base_bytes(inputs.config.model_copy(update={"training": training}), inputs.shape)
    needed_bytes = round(base_bytes * FREE_SHARE)
    capacity = measure_capacity()
    if needed_bytes <= capacity.free:
        return None
    message = (
        f"nothing was checked: the base model needs about {format_bytes(needed_bytes)} in {precision}, but only "
        f"{format_bytes(capacity.free)} of {capacity.kind} memory are free; repeat the check on a machine with more "
        "memory"
    )
    return PreflightFinding(
        check="memory", status="warning", message=message, value=needed_bytes, expected=capacity.free
    )


def _fetch_weights(inputs: InspectedInputs) -> Path:
    """Return the folder of the complete base model. Only a model in S3 is not complete yet."""
    if not isinstance(inputs.model, S3ModelSource):
        return inputs.files.model_dir
    weights_size = inputs.model.size - inputs.model.settings_size
    check_disk_space(inputs.work_dir, {"weights": weights_size})
    log.info("downloading the weights of the base model, %s", format_bytes(weights_size))
    return inputs.model.fetch_weights(inputs.files.model, lambda _: None).folder
