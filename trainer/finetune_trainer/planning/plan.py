"""Plans a run for `finetune-trainer plan`: counts rows, tokens and steps, and estimates memory and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from finetune_trainer import input_preparation
from finetune_trainer.config import loader
from finetune_trainer.contract import DatasetReport, Reason, Servable, TrainerConfig
from finetune_trainer.contract.base import Model
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.grader_preview import GraderPreview, preview_data_answers
from finetune_trainer.formatting import format_bytes
from finetune_trainer.inputs import resolve
from finetune_trainer.planning import inspection, shown_rows
from finetune_trainer.planning.recommendations import Recommendation, recommend_settings
from finetune_trainer.planning.shown_rows import ShownRow
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.storage import S3
from finetune_trainer.storage.scratch import USABLE_SHARE, describe_parts, suggest_size
from finetune_trainer.training.batching import Lengths, measure_lengths, measure_sequences
from finetune_trainer.training.fitting_settings import RunSize

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData

_PERCENTILES = (50, 90, 99, 100)
_BATCH_ROWS = 1000


class MemoryReport(Model):
    """Estimated peak memory on each GPU, in bytes."""

    base: int
    """The frozen base model in its precision and quantization, or the share of a rank."""
    gathered: int
    """Layers, embeddings and head of a sharded base model that are complete for a while."""
    adapter: int
    """The adapter with its gradients and the state of the optimizer."""
    activations: int
    """Activations for the backward pass, of the largest forward pass."""
    logits: int
    """Logits of the tokens that the loss processes at once."""
    context: int
    """The CUDA context."""
    load: int
    """Peak while the weights are read."""
    training: int
    """Peak of the training. Logits and the work on a layer are not in memory at the same time, so this is less than the
    sum of the parts."""
    evaluation: int
    """Peak of the evaluation after the training, with base model, adapter and context."""
    export: int
    """Peak of the export, with `output.merged` of the merge."""
    total: int
    """The peak of all phases."""
    fits: dict[int, bool]
    """For each GPU size in GB, whether the run fits."""


class Plan(Model):
    """What a run would do. Fields that begin with `estimated` are computed, all others are counted."""

    dataset: DatasetReport
    """The dataset report of the run."""
    max_length: int
    """Maximum length of a row in tokens: `model.maxLength`, or the positions of the base model if they are fewer."""
    positions_limit_length: bool
    """Whether the positions of the base model set the maximum length."""
    token_percentiles: dict[int, int]
    """Percentiles of the length of kept rows in tokens; 100 is the longest row."""
    workers: int
    """Number of ranks, one for each GPU."""
    batching: str
    """How rows form batches, as in `training.batching`."""
    batch: int
    """Rows per optimizer step, of all ranks. With `packed` they are sequences of rows."""
    steps_per_epoch: int
    """Optimizer steps per epoch of the training on all rows."""
    trainings: int
    """Number of trainings: one, and one for each fold of `training.crossValidation`."""
    steps: int
    """Optimizer steps of all trainings."""
    tokens_trained: int
    """Tokens of all steps, without padding. With `grpo` and `rloo` at most, because answers may be shorter."""
    prompts: int | None = None
    """Prompts per optimizer step, with `grpo` and `rloo`, whose `batch` counts answers."""
    model_parameters: int
    trainable_parameters: int
    adapter_bytes: int
    """Size of the published weights."""
    scratch_bytes: int
    """What the run needs at least on its scratch volume."""
    scratch_parts: dict[str, int]
    """The parts of `scratch_bytes`, by name."""
    estimated_checkpoint_bytes: int
    estimated_memory: MemoryReport
    recommendations: list[Recommendation] = Field(default=[])
    """For each common GPU size, the fastest settings that fit and keep the rows of each step."""
    estimated_seconds: dict[str, float]
    """Training time in seconds by type of GPU, divided by the number of ranks."""
    servable: Servable
    """Which inference servers load the adapter."""
    graders: list[GraderPreview] = Field(default=[])
    """The scores that `evaluation.graders` give to the answers of the data."""
    preflight: list[PreflightFinding] = Field(default=[])
    """Results of the preflight checks of `--check`; empty without it."""
    rows: list[ShownRow] = Field(default=[])
    """The rows of `--show-rows`; empty without it."""


class CheckFailedError(TrainerError):
    """The error of a check, with the plan that precedes it."""

    def __init__(self, error: TrainerError, plan: Plan) -> None:
        super().__init__(error.reason, error.message)
        self.plan = plan


@dataclass(frozen=True)
class RunResources:
    """What the pods of a run have in the cluster."""

    world_size: int = 1
    """Number of ranks."""
    scratch_size: int | None = None
    """Size of the scratch volume in bytes, if the manifest says it."""
    is_sharded: bool = False
    """Whether the ranks share the base model."""


def build_plan(
    config: TrainerConfig, scratch: Path, resources: RunResources = RunResources(), row_count: int = 0
) -> Plan:
    """Prepare the data and inspect the model. The plan contains the first `row_count` rows to train on.

    Raises the errors that the run would raise for its data and model, and `CheckFailedError` if the scratch volume is
    too small.
    """
    with _inspect_inputs(config, scratch, resources) as inputs:
        plan = _assemble_plan(inputs, resources, row_count)
        _check_scratch(plan, resources.scratch_size)
        return plan


def read_resources(manifest: Path) -> RunResources:
    """Read what a manifest requests for its pods."""
    return RunResources(
        loader.read_world_size(manifest), loader.read_scratch_size(manifest), loader.read_sharding(manifest)
    )


class RunLength(NamedTuple):
    """What changes from run to run of a series."""

    steps: int
    """Optimizer steps."""
    rows_per_step: int
    estimated_seconds: dict[str, float]
    """Training time in seconds by type of GPU."""
    estimated_memory: int
    """Peak memory on the GPU, in bytes."""


def build_series_plan(
    config: TrainerConfig, variants: Sequence[TrainerConfig], scratch: Path, resources: RunResources = RunResources()
) -> tuple[Plan, list[RunLength]]:
    """Build the plan of a config, and the lengths of its variants, which have the same data and base model.

    Raises as `build_plan`.
    """
    with _inspect_inputs(config, scratch, resources) as inputs:
        plan = _assemble_plan(inputs, resources, 0)
        _check_scratch(plan, resources.scratch_size)
        size = _measure_size(inputs, resources)
        return plan, [_measure_variant(inputs, plan, variant, size) for variant in variants]


def _measure_size(inputs: inspection.InspectedInputs, resources: RunResources) -> RunSize:
    lengths = measure_sequences(inputs.config, inputs.prepared.dataset)
    return RunSize(inputs.shape, lengths, resources.world_size, resources.is_sharded)


def _measure_variant(
    inputs: inspection.InspectedInputs, plan: Plan, variant: TrainerConfig, size: RunSize
) -> RunLength:
    from finetune_trainer.modeling.positions import limit_max_length
    from finetune_trainer.planning import estimates
    from finetune_trainer.training.steps import (
        count_optimizer_steps,
        count_sequences,
        iterate_training_rows,
        resolve_accumulation,
    )

    config = limit_max_length(variant, inputs.shape.max_positions)
    counts = [count_sequences(config, rows) for rows in iterate_training_rows(inputs.prepared)]
    steps = sum(count_optimizer_steps(config.training, count, plan.workers) for count in counts)
    rows_per_step = config.training.batch_size * resolve_accumulation(config.training, plan.workers) * plan.workers
    tokens = round(plan.tokens_trained * steps * rows_per_step / (plan.steps * plan.batch))
    shape = replace(
        inputs.shape, trainable=inputs.shape.trainable * config.training.lora.rank // inputs.config.training.lora.rank
    )
    seconds = estimates.estimate_seconds(config, shape, tokens)
    return RunLength(
        steps=steps,
        rows_per_step=rows_per_step,
        estimated_seconds={gpu: each / plan.workers for gpu, each in seconds.items()},
        estimated_memory=replace(size, shape=shape).estimate(config).total,
    )


def build_checked_plan(
    config: TrainerConfig, scratch: Path, resources: RunResources = RunResources(), row_count: int = 0
) -> Plan:
    """Build the plan as `build_plan` does. If this machine has enough memory, also load the model and run the preflight
    checks.

    Raises as `build_plan`, and `CheckFailedError` for the errors that the run would raise before its first step.
    """
    topology.use_first_gpu()
    with _inspect_inputs(config, scratch, resources, chooses_backend=True) as inputs:
        from finetune_trainer.planning import model_check

        plan = _assemble_plan(inputs, resources, row_count)
        _check_scratch(plan, resources.scratch_size)
        try:
            return plan.model_copy(update={"preflight": model_check.check_model(inputs)})
        except TrainerError as error:
            raise CheckFailedError(error, plan) from error


def _check_scratch(plan: Plan, scratch_size: int | None) -> None:
    """Raise `DISK_FULL` if the scratch volume of the manifest is smaller than what the run needs."""
    if scratch_size is None or plan.scratch_bytes <= scratch_size * USABLE_SHARE:
        return
    message = (
        f"compute.scratch.size is {format_bytes(scratch_size)}, but the run needs at least "
        f"{format_bytes(plan.scratch_bytes)} ({describe_parts(plan.scratch_parts)}); set it to "
        f"{suggest_size(plan.scratch_bytes)} or more"
    )
    raise CheckFailedError(TrainerError(Reason.DISK_FULL, message), plan)


@contextmanager
def _inspect_inputs(
    config: TrainerConfig, scratch: Path, resources: RunResources, chooses_backend: bool = False
) -> Iterator[inspection.InspectedInputs]:
    """Yield the inspected inputs of a run with these resources. Raises as `inspection.inspect_inputs`."""
    with (
        topology.use_sharding(resources.is_sharded),
        inspection.inspect_inputs(_resolve_inputs(config), scratch, resources.world_size, chooses_backend) as inputs,
    ):
        yield inputs


def _resolve_inputs(config: TrainerConfig) -> resolve.ResolvedInputs:
    input_preparation.check_settings(config)
    inputs = resolve.resolve_inputs(config, S3(config.storage))
    resolve.log_inputs(inputs)
    return inputs


def _assemble_plan(inputs: inspection.InspectedInputs, resources: RunResources, row_count: int) -> Plan:
    from finetune_trainer.modeling.positions import limit_max_length
    from finetune_trainer.modeling.servable import describe_servable, read_architecture
    from finetune_trainer.planning import estimates
    from finetune_trainer.training.steps import count_prompts_per_step, resolve_accumulation

    prepared, shape, configured_length = inputs.prepared, inputs.shape, inputs.config.model.max_length
    config = limit_max_length(inputs.config, shape.max_positions)
    training, world_size = config.training, resources.world_size
    size = _measure_size(inputs, resources)
    steps, per_epoch, tokens = _count_steps_and_tokens(config, prepared, world_size)
    memory, seconds = size.estimate(config), estimates.estimate_seconds(config, shape, tokens)
    scratch_parts = estimates.estimate_scratch(config, shape, steps[-1], inputs.list_stored_parts())
    return Plan(
        workers=world_size,
        batching=training.effective_batching,
        batch=training.batch_size * resolve_accumulation(training, world_size) * world_size,
        prompts=count_prompts_per_step(training, world_size) if training.is_policy_method else None,
        dataset=prepared.report,
        max_length=config.model.max_length,
        positions_limit_length=config.model.max_length < configured_length,
        token_percentiles=_compute_token_percentiles(measure_lengths(prepared.dataset)),
        steps_per_epoch=per_epoch[-1],
        trainings=len(steps),
        steps=sum(steps),
        tokens_trained=tokens,
        model_parameters=shape.parameters,
        trainable_parameters=shape.trainable,
        adapter_bytes=shape.trainable * 4,
        scratch_bytes=sum(scratch_parts.values()),
        scratch_parts=scratch_parts,
        estimated_checkpoint_bytes=estimates.estimate_checkpoint_bytes(config, shape, steps[-1]),
        estimated_memory=MemoryReport(**vars(memory), total=memory.total, fits=dict(memory.fits_by_gpu_size())),
        recommendations=recommend_settings(config, size),
        estimated_seconds={gpu: round(gpu_seconds / world_size, 1) for gpu, gpu_seconds in seconds.items()},
        servable=describe_servable(config, read_architecture(inputs.files.model_dir)),
        graders=preview_data_answers(config, prepared),
        rows=shown_rows.collect_rows(prepared, inputs.tokenizer, row_count),
    )


def _count_steps_and_tokens(
    config: TrainerConfig, prepared: PreparedData, world_size: int
) -> tuple[list[int], list[int], int]:
    """Return the steps of each training, its steps per epoch, and the tokens of all trainings together."""
    from finetune_trainer.training.steps import count_optimizer_steps, count_sequences, iterate_training_rows

    one_epoch = config.training.model_copy(update={"epochs": 1.0, "max_steps": None})
    training_rows = list(iterate_training_rows(prepared))
    sequence_counts = [count_sequences(config, rows) for rows in training_rows]
    steps, per_epoch = (
        [count_optimizer_steps(settings, count, world_size) for count in sequence_counts]
        for settings in (config.training, one_epoch)
    )
    tokens = [_count_tokens(config, rows) for rows in training_rows]
    trainings = zip(tokens, steps, per_epoch, strict=True)
    return (
        steps,
        per_epoch,
        round(sum(epoch_tokens * step_count / epoch_steps for epoch_tokens, step_count, epoch_steps in trainings)),
    )


def _count_tokens(config: TrainerConfig, rows: datasets.Dataset) -> int:
    """Return the tokens of an epoch, with answers of the maximum length to each prompt if the method generates them."""
    if config.training.is_policy_method:
        return int(measure_sequences(config, rows).sum()) * config.training.effective_rollout.generations
    id_columns = [name for name in rows.column_names if name.endswith("_ids")]
    return sum(len(ids) for batch in rows.iter(_BATCH_ROWS) for name in id_columns for ids in batch[name])


def _compute_token_percentiles(lengths: Lengths) -> dict[int, int]:
    """Compute the percentiles with the nearest-rank method."""
    ordered = sorted(lengths.tolist())
    return {percentile: ordered[max(0, -(-percentile * len(ordered) // 100) - 1)] for percentile in _PERCENTILES}
