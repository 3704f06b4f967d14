"""Checks the downloaded base model of a run and prepares its dataset, in the same way for `run` and `plan`.

Libraries are imported inside functions: import the backend before they are called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import DatasetReport, Reason, TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.data_sources import check_files_unchanged
from finetune_trainer.inputs.resolve import DownloadedInputs
from finetune_trainer.modeling.sharding_limits import list_unsupported_settings
from finetune_trainer.training.model_shape import ModelShape, measure_shape
from finetune_trainer.training.scratch_needs import list_training_parts
from finetune_trainer.training.steps import count_optimizer_steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.training.batching import Lengths
    from finetune_trainer.training.fitting_settings import RunSize

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedModel:
    """What the data preparation needs of a base model whose files were checked."""

    tokenizer: PreTrainedTokenizerBase
    max_positions: int | None
    """Maximum length of a text in tokens, if it is limited."""
    shape: ModelShape
    """Sizes of the model and its adapter. Its parameters are those of its class."""
    template_date: date | None = None
    """Date that the chat template writes as the current one, or None if it cannot write any."""


def check_settings(config: TrainerConfig) -> None:
    """Raise `CONFIG_INVALID` for settings that are wrong for every base model, before anything is downloaded."""
    from finetune_trainer.data.template_settings import check_template_settings

    check_template_settings(config.model)
    if topology.is_sharded():
        check_sharding(config)


def check_sharding(config: TrainerConfig) -> None:
    """Raise `CONFIG_INVALID` for settings that a sharded base model does not support."""
    names = list_unsupported_settings(config)
    if names:
        message = f"compute.sharding full does not support {' and '.join(names)}; change it, or set sharding to none"
        raise TrainerError(Reason.CONFIG_INVALID, message)


def check_model(config: TrainerConfig, files: DownloadedInputs, template_date: date) -> CheckedModel:
    """Check the base model without its weights, and the adapters that training starts from and is compared with.
    `template_date` is the date of the run for chat templates that write the current date.

    Raises `MODEL_INVALID`, `MODEL_UNSUPPORTED`, and `CONFIG_INVALID` for settings that do not fit the model.
    """
    from finetune_trainer.data.chat_template import can_write_date
    from finetune_trainer.inputs.model_files import check_model_dir
    from finetune_trainer.modeling import (
        baseline_adapter,
        existing_adapter,
        loading,
        positions,
        stored_quantization,
        support_matrix,
    )
    from finetune_trainer.modeling.model_config import build_meta_model
    from finetune_trainer.modeling.quantization import check_planned_quantization

    check_model_dir(files.model_dir)
    if files.adapter_dir is not None:
        existing_adapter.check_adapter(config, files.adapter_dir)
        existing_adapter.warn_of_other_base_model(config, files.adapter_dir)
    model_config = stored_quantization.load_checked_config(config, files.model_dir)
    support_matrix.check_support(config, model_config.model_type)
    meta_model = build_meta_model(model_config)  # fails for invalid sizes, before the data is prepared
    if topology.is_sharded():
        _check_shardable(meta_model)
    check_planned_quantization(config, model_config, meta_model)
    baseline_adapter.check_baselines(files.baseline_dirs, model_config)
    tokenizer = loading.load_tokenizer(files.model_dir, config.model)
    loading.check_vocabulary(tokenizer, model_config.get_text_config().vocab_size)
    max_positions = positions.get_max_positions(model_config)
    # The first one has quantized layers now, whose weights DoRA would read.
    shape = measure_shape(config, build_meta_model(model_config), files.model_dir)
    if not can_write_date(tokenizer):
        return CheckedModel(tokenizer, max_positions, shape)
    log.info("the chat template can write the current date: rows and prompts then have %s", template_date)
    return CheckedModel(tokenizer, max_positions, shape, template_date)


def check_base_memory(config: TrainerConfig, model: CheckedModel, backend: str) -> None:
    """Raise `OUT_OF_MEMORY` if the GPU has too little memory whatever the rows are: they count as one token."""
    import numpy as np

    from finetune_trainer.modeling.positions import limit_max_length
    from finetune_trainer.training import memory_check

    limited, capacity = limit_max_length(config, model.max_positions), memory_check.measure_capacity()
    shortest, longest = (_build_run_size(model, np.array([length])) for length in (1, limited.model.max_length))
    prediction = memory_check.predict_memory(limited, shortest, backend, capacity)
    memory_check.check_memory(prediction, capacity, longest)


def check_memory(config: TrainerConfig, model: CheckedModel, dataset: PreparedData, backend: str) -> None:
    """Log the memory that the run is predicted to need. Raise `OUT_OF_MEMORY` if the GPU cannot have enough."""
    from finetune_trainer.modeling.positions import limit_max_length
    from finetune_trainer.training import memory_check
    from finetune_trainer.training.batching import measure_sequences

    limited, capacity = limit_max_length(config, model.max_positions), memory_check.measure_capacity()
    size = _build_run_size(model, measure_sequences(config, dataset.dataset))
    prediction = memory_check.predict_memory(limited, size, backend, capacity)
    memory_check.check_memory(prediction, capacity, size)
    memory_check.log_memory(prediction, capacity)


def _build_run_size(model: CheckedModel, lengths: Lengths) -> RunSize:
    from finetune_trainer.training.fitting_settings import RunSize

    return RunSize(model.shape, lengths, topology.world_size(), topology.is_sharded())


def _check_shardable(meta_model: PreTrainedModel) -> None:
    from finetune_trainer.modeling.sharding import check_shardable

    check_shardable(meta_model)


def list_remaining_parts(
    config: TrainerConfig, model: CheckedModel, dataset: PreparedData, weights_bytes: int
) -> dict[str, int]:
    """Return what a run writes to its scratch volume after the data is prepared, in bytes by part. `weights_bytes` is
    what is missing of the base model then."""
    from finetune_trainer.modeling.precision import get_dtype, resolve_precision

    steps = count_optimizer_steps(config.training, len(dataset.dataset), topology.world_size())
    bytes_per_parameter = get_dtype(resolve_precision(config)).itemsize
    return {"weights": weights_bytes, **list_training_parts(config, model.shape.sizes, steps, bytes_per_parameter)}


def prepare_data(
    config: TrainerConfig,
    files: DownloadedInputs,
    model: CheckedModel,
    work_dir: Path,
    record_report: Callable[[DatasetReport], None] = lambda _: None,
) -> PreparedData:
    """Prepare the dataset in `work_dir`, and check that it has what the evaluation needs.

    `record_report` is called before that check, so that the report is known if it fails.
    """
    from finetune_trainer.data import preparation
    from finetune_trainer.data.row_schema import RowEncoding
    from finetune_trainer.evaluation import requirements
    from finetune_trainer.training.methods import get_method

    data_files = preparation.DataFiles(files.sources, files.digest, files.validation, files.test)
    encoding = RowEncoding(model.tokenizer, get_method(config), model.max_positions, model.template_date)
    dataset = preparation.prepare_dataset(config, data_files, encoding, work_dir)
    check_files_unchanged(files.files)
    dataset = replace(dataset, report=dataset.report.model_copy(update={"skipped_files": files.skipped_files}))
    record_report(dataset.report)
    requirements.check_requirements(config, dataset, model.tokenizer)
    requirements.read_sentence_pairs(files.pairs)  # so that an invalid line is reported before training
    return dataset
