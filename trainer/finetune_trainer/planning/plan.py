"""`finetune-trainer plan`: what a run would do and need, before a GPU is paid for. Publishes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from finetune_trainer.contract import DatasetReport, TrainerConfig
from finetune_trainer.contract.base import Model
from finetune_trainer.inputs import resolve
from finetune_trainer.planning import safetensors_headers
from finetune_trainer.storage import S3

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.planning.model_shape import Architecture

_PERCENTILES = (50, 90, 99, 100)
_BATCH = 1000


class Memory(Model):
    """Bytes on the GPU at the peak, estimated."""

    base: int
    """The frozen model, at the config's precision and quantisation."""
    adapter: int
    """The adapter with its gradients and AdamW's state."""
    activations: int
    """What the backward pass needs, at `batchSize` examples of `maxLength`."""
    logits: int
    """Of the tokens that the loss looks at together."""
    context: int
    """CUDA's own."""
    total: int
    fits: dict[int, bool]
    """Memory of a GPU in GB, and whether the run fits."""


class Plan(Model):
    """What a run would do. What begins with `estimated` is arithmetic, the rest is counted."""

    dataset: DatasetReport
    """As the run would report it."""
    max_length: int
    """Tokens of the longest row that is trained on: `model.maxLength`, or the base model's positions if they are
    fewer."""
    positions_limit_length: bool
    """Whether it is the base model's positions."""
    token_percentiles: dict[int, int]
    """Length of the kept rows in tokens; 100 is the longest."""
    workers: int
    """Processes that train together, one for each GPU."""
    batch: int
    """Examples that an optimizer step sees, of all workers."""
    steps_per_epoch: int
    """Of the training on all rows."""
    trainings: int
    """One, and with `training.crossValidation` one more for each fold."""
    steps: int
    """Of all trainings."""
    tokens_trained: int
    """Over all steps, padding not counted."""
    model_parameters: int
    trainable_parameters: int
    adapter_bytes: int
    """Of the published weights."""
    estimated_checkpoint_bytes: int
    estimated_memory: Memory
    estimated_seconds: dict[str, float]
    """By GPU, training alone, shared evenly by all workers."""


def plan(config: TrainerConfig, scratch: Path, workers: int = 1) -> Plan:
    """Read, check and count everything. Raises what the run itself would raise for its data and model."""
    located = resolve.locate(config, S3(config.storage))
    located = replace(located, model=safetensors_headers.of(located.model))
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as folder:
        prepared, shape = _look(located, Path(folder))
        return _compose(config, prepared, shape, workers)


def _look(located: resolve.Located, folder: Path) -> tuple[PreparedData, Architecture]:
    downloading = resolve.start(located, folder)
    from finetune_trainer.data import preparation
    from finetune_trainer.modeling import loading

    # Seconds of imports, while the download goes on.
    loading.import_backend("transformers", located.config.model.quantization)
    fetched = downloading.result()
    from finetune_trainer.evaluation import requirements
    from finetune_trainer.inputs import model_files
    from finetune_trainer.modeling import adapters
    from finetune_trainer.planning import model_shape

    model_files.check_model_dir(fetched.model_dir)
    if fetched.adapter_dir is not None:
        adapters.check(located.config, fetched.adapter_dir)
    tokenizer = loading.load_tokenizer(fetched.model_dir, located.config.model.chat_template)
    shape = model_shape.describe(located.config, fetched.model_dir)
    loading.check_vocabulary(tokenizer, shape.vocabulary)
    files = preparation.Files(fetched.sources, fetched.digest, fetched.validation)
    prepared = preparation.prepare(located.config, files, tokenizer, folder, shape.positions)
    requirements.check(located.config, prepared, tokenizer)
    requirements.pairs(fetched.pairs)
    return prepared, shape


def _compose(config: TrainerConfig, prepared: PreparedData, shape: Architecture, workers: int) -> Plan:
    from finetune_trainer.modeling.positions import limit_length
    from finetune_trainer.planning import estimates

    config, asked_length = limit_length(config, shape.positions), config.model.max_length
    training = config.training
    steps, per_epoch, tokens = _lengths_of_all(config, prepared, workers)
    memory, seconds = estimates.memory(config, shape), estimates.seconds(config, shape, tokens)
    return Plan(
        workers=workers,
        batch=training.batch_size * training.gradient_accumulation * workers,
        dataset=prepared.report,
        max_length=config.model.max_length,
        positions_limit_length=config.model.max_length < asked_length,
        token_percentiles=_percentiles(prepared.dataset),
        steps_per_epoch=per_epoch[-1],
        trainings=len(steps),
        steps=sum(steps),
        tokens_trained=tokens,
        model_parameters=shape.parameters,
        trainable_parameters=shape.trainable,
        adapter_bytes=shape.trainable * 4,
        estimated_checkpoint_bytes=estimates.checkpoint_bytes(shape, steps[-1]),
        estimated_memory=Memory(**vars(memory), total=memory.total, fits=dict(memory.fits())),
        estimated_seconds={gpu: round(each / workers, 1) for gpu, each in seconds.items()},
    )


def _lengths_of_all(config: TrainerConfig, prepared: PreparedData, workers: int) -> tuple[list[int], list[int], int]:
    """Of each training its steps and those of an epoch, that on all rows last; and the tokens of all together."""
    from finetune_trainer.training.cross_validation import rows_of_all, sequences
    from finetune_trainer.training.train import total_steps

    once = config.training.model_copy(update={"epochs": 1.0, "max_steps": None})
    all_rows = list(rows_of_all(prepared))
    counts = [sequences(config, rows) for rows in all_rows]
    steps, per_epoch = ([total_steps(how, count, workers) for count in counts] for how in (config.training, once))
    passes = zip(all_rows, steps, per_epoch, strict=True)
    return steps, per_epoch, round(sum(_tokens(rows) * taken / epoch for rows, taken, epoch in passes))


def _tokens(rows: datasets.Dataset) -> int:
    names = [name for name in rows.column_names if name.endswith("_ids")]
    return sum(len(ids) for batch in rows.iter(_BATCH) for name in names for ids in batch[name])


def _percentiles(rows: datasets.Dataset) -> dict[int, int]:
    """Nearest-rank."""
    lengths = sorted(length for batch in rows.iter(_BATCH) for length in _lengths(batch))
    return {each: lengths[max(0, -(-each * len(lengths) // 100) - 1)] for each in _PERCENTILES}


def _lengths(batch: Mapping[str, Sequence[Sequence[int]]]) -> Iterator[int]:
    """Of each row's longest sequence: preferences have their answers beside the prompt."""
    answers = [batch[name] for name in batch if name.endswith("_ids") and name != "prompt_ids"]
    prompts = batch.get("prompt_ids", [()] * len(answers[0]))
    for prompt, *others in zip(prompts, *answers, strict=True):
        yield len(prompt) + max(map(len, others))
