"""Downloads the inputs of a run for a plan, without the weights, prepares the dataset and counts the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.inputs import resolve
from finetune_trainer.inputs.base_model import BaseModelSource, read_model_settings
from finetune_trainer.planning import safetensors_headers

if TYPE_CHECKING:
    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.planning.model_shape import ModelShape


@dataclass(frozen=True)
class InspectedInputs:
    """The inputs of a run as far as a plan needs them."""

    config: TrainerConfig
    model: BaseModelSource
    """The complete base model."""
    files: resolve.DownloadedInputs
    """All inputs, but only the headers of the weights of a base model in S3."""
    prepared: PreparedData
    shape: ModelShape
    backend: str
    """The imported backend."""
    work_dir: Path
    """A temporary folder."""


@contextmanager
def inspect_inputs(
    resolved_inputs: resolve.ResolvedInputs, scratch: Path, world_size: int | None = None
) -> Iterator[InspectedInputs]:
    """Yield the inspected inputs, whose files are removed at the end of the block. Imports the backend: the one that a
    run with `world_size` ranks would use, or transformers, which suffices to count parameters.

    Raises the errors that the run would raise for its data and model.
    """
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as folder:
        work_dir, config = Path(folder), resolved_inputs.config
        files, backend = _download_inputs(resolved_inputs, work_dir, world_size)
        prepared, shape = _prepare_dataset(config, files, work_dir)
        yield InspectedInputs(config, resolved_inputs.model, files, prepared, shape, backend, work_dir)


def _download_inputs(
    resolved_inputs: resolve.ResolvedInputs, work_dir: Path, world_size: int | None
) -> tuple[resolve.DownloadedInputs, str]:
    """Return the inputs and the backend, which is imported."""
    config = resolved_inputs.config
    without_weights = replace(resolved_inputs, model=safetensors_headers.skip_weights(resolved_inputs.model))
    download = resolve.start_download(without_weights, work_dir)
    from finetune_trainer.modeling import loading

    backend = "transformers"
    if world_size is not None:
        backend = loading.choose_backend(config, lambda: read_model_settings(resolved_inputs.model), world_size)
    # The imports take seconds, during which the download continues.
    loading.import_backend(backend, config.model.quantization)
    return download.result(), backend


def _prepare_dataset(
    config: TrainerConfig, fetched: resolve.DownloadedInputs, work_dir: Path
) -> tuple[PreparedData, ModelShape]:
    from finetune_trainer.data import preparation
    from finetune_trainer.data.row_schema import RowEncoding
    from finetune_trainer.evaluation import requirements
    from finetune_trainer.inputs import model_files
    from finetune_trainer.modeling import adapters, loading, support_matrix
    from finetune_trainer.modeling.model_config import load_model_config
    from finetune_trainer.planning import model_shape
    from finetune_trainer.training.methods import get_method

    model_files.check_model_dir(fetched.model_dir)
    if fetched.adapter_dir is not None:
        adapters.check_adapter(config, fetched.adapter_dir)
    tokenizer = loading.load_tokenizer(fetched.model_dir, config.model.chat_template)
    support_matrix.check_support(config, load_model_config(fetched.model_dir).model_type)
    shape = model_shape.compute_model_shape(config, fetched.model_dir)
    loading.check_vocabulary(tokenizer, shape.vocab_size)
    files = preparation.DataFiles(fetched.sources, fetched.digest, fetched.validation)
    encoding = RowEncoding(tokenizer, get_method(config), shape.max_positions)
    prepared = preparation.prepare_dataset(config, files, encoding, work_dir)
    requirements.check_requirements(config, prepared, tokenizer)
    requirements.read_sentence_pairs(fetched.pairs)
    return prepared, shape
