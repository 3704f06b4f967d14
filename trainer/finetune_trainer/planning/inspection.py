"""Downloads the inputs of a run for a plan, without the weights, prepares the dataset and counts the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from finetune_trainer import input_preparation
from finetune_trainer.config.template_date import get_current_date, read_template_date
from finetune_trainer.contract import TrainerConfig
from finetune_trainer.inputs import resolve
from finetune_trainer.inputs.base_model import BaseModelSource, S3ModelSource, read_model_settings
from finetune_trainer.planning import safetensors_headers
from finetune_trainer.training.scratch_needs import list_download_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.training.model_shape import ModelShape


@dataclass(frozen=True)
class InspectedInputs:
    """The inputs of a run as far as a plan needs them."""

    config: TrainerConfig
    model: BaseModelSource
    """The complete base model."""
    files: resolve.DownloadedInputs
    """All inputs, but only the headers of the weights of a base model in S3."""
    tokenizer: PreTrainedTokenizerBase
    prepared: PreparedData
    shape: ModelShape
    backend: str
    """The imported backend."""
    work_dir: Path
    """A temporary folder."""
    download_parts: Mapping[str, int]
    """What the run downloads, and the prepared data as it is counted before, in bytes by part."""

    def list_stored_parts(self) -> dict[str, int]:
        """Return what the run downloads, and the prepared data as it is stored, in bytes by part."""
        prepared_bytes = sum(path.stat().st_size for path in self.work_dir.iterdir() if path.is_file())
        return {**self.download_parts, "prepared data": prepared_bytes}


@contextmanager
def inspect_inputs(
    resolved_inputs: resolve.ResolvedInputs, scratch: Path, world_size: int, chooses_backend: bool = False
) -> Iterator[InspectedInputs]:
    """Yield the inspected inputs, whose files are removed at the end of the block. Imports the backend: with
    `chooses_backend` the one that a run with `world_size` ranks would use, otherwise transformers, which suffices to
    count parameters.

    Raises the errors that the run would raise for its data and model.
    """
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as folder:
        work_dir, config = Path(folder), resolved_inputs.config
        files, backend = _download_inputs(resolved_inputs, work_dir, world_size, chooses_backend)
        from finetune_trainer.planning.model_shape import compute_model_shape

        model = input_preparation.check_model(config, files, read_template_date() or get_current_date())
        prepared = input_preparation.prepare_data(config, files, model, work_dir)
        files = _fetch_headers(resolved_inputs, files)
        shape = compute_model_shape(config, files.model_dir)
        parts = list_download_parts(resolved_inputs, resolved_inputs.model.size)
        yield InspectedInputs(
            config, resolved_inputs.model, files, model.tokenizer, prepared, shape, backend, work_dir, parts
        )


def _download_inputs(
    resolved_inputs: resolve.ResolvedInputs, work_dir: Path, world_size: int, chooses_backend: bool
) -> tuple[resolve.DownloadedInputs, str]:
    """Return the inputs and the backend, which is imported."""
    config, read_settings = resolved_inputs.config, partial(read_model_settings, resolved_inputs.model)
    download = resolve.start_download(resolved_inputs, work_dir)
    from finetune_trainer.modeling import backends, kernels

    backends.check_unsloth(config, read_settings, world_size)
    kernels.check_family(config, read_settings)
    if chooses_backend:  # and computes with it
        kernels.check_gpu(config)
    backend = backends.choose_backend(config, read_settings, world_size) if chooses_backend else "transformers"
    # The imports take seconds, during which the download continues.
    backends.import_backend(backend, config.model.quantization)
    return download.result(), backend


def _fetch_headers(
    resolved_inputs: resolve.ResolvedInputs, files: resolve.DownloadedInputs
) -> resolve.DownloadedInputs:
    """Complete the base model as far as a plan needs it: with the headers of weights in S3, or with all weights."""
    if not isinstance(resolved_inputs.model, S3ModelSource):
        return resolve.fetch_weights(resolved_inputs, files)
    safetensors_headers.fetch_headers(resolved_inputs.model, files.model_dir)
    return files
