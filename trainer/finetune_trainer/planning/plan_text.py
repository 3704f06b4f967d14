"""Formats a plan as an aligned text table."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_trainer.contract import DatasetReport, Servable
from finetune_trainer.formatting import format_bytes, format_duration, pluralize
from finetune_trainer.planning.plan import MemoryReport, Plan
from finetune_trainer.planning.recommendations import format_recommendations
from finetune_trainer.planning.series import SeriesPlan
from finetune_trainer.planning.shown_rows import QUOTE_MARKS, TextMarks, format_rows
from finetune_trainer.storage.scratch import describe_parts
from finetune_trainer.text import to_one_line

_MEMORY_PARTS = ("base", "gathered", "adapter", "activations", "logits", "context")
_MEMORY_PHASES = ("load", "training", "evaluation", "export")


def to_text(plan: Plan, marks: TextMarks = QUOTE_MARKS) -> str:
    """Return one label and value per line. Estimates are marked with `~`. The rows of the plan follow, with `marks`
    around their supervised parts."""
    lines = [
        *_dataset_lines(plan.dataset),
        *_training_lines(plan),
        *_memory_lines(plan.estimated_memory),
        *_time_lines(plan),
        *_servable_lines(plan.servable),
        *_grader_lines(plan),
        *_preflight_lines(plan),
    ]
    width = max(len(label) for label, _ in lines)
    table = "\n".join(f"{label:<{width}}  {value}" for label, value in lines)
    blocks = [table, format_recommendations(plan.recommendations), format_rows(plan.rows, marks) if plan.rows else ""]
    return "\n\n".join(filter(None, blocks))


def series_to_text(plan: SeriesPlan, gpu_hour_price: float | None) -> str:
    """Return the plan of a series: all runs together, then a run with the values of the template."""
    hours = plan.estimated_gpu_hours.items()
    is_sweep = bool(plan.trials)
    lines = [
        ("trials" if is_sweep else "runs in 28 days", f"{plan.runs:,}"),
        ("steps of all", f"~ {plan.steps:,}" if is_sweep else f"{plan.steps:,}"),
        ("GPU hours", "~ " + ", ".join(f"{gpu} {value:,.2f}" for gpu, value in hours)),
        ("peak memory", f"~ {format_bytes(plan.estimated_memory)}"),
    ]
    if gpu_hour_price is not None:
        lines.append(("cost", "~ " + ", ".join(f"{gpu} {value * gpu_hour_price:,.2f}" for gpu, value in hours)))
    lines += [(f"trial {trial.number}", f"{trial.values.describe()}, seed {trial.seed}") for trial in plan.trials]
    lines += [("warning", warning) for warning in plan.warnings]
    width = max(len(label) for label, _ in lines)
    table = "\n".join(f"{label:<{width}}  {value}" for label, value in lines)
    return f"{table}\n\nA run with the values of the template:\n{to_text(plan.run)}"


def _dataset_lines(report: DatasetReport) -> Iterator[tuple[str, str]]:
    yield "rows read", f"{report.rows:,}"
    yield "rows kept", f"{report.kept:,}"
    if report.validation:
        yield "rows for validation", f"{report.validation:,}"
    if report.test:
        yield "rows for the test", f"{report.test:,}"
    for reason, count in report.rejected.items():
        yield f"rejected: {reason}", f"{count:,}"
    yield "tokens", f"{report.tokens:,}, of which {report.supervised_tokens:,} are supervised"


def _training_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    percentile_texts = (
        f"{'longest' if percentile == 100 else f'p{percentile}'} {size:,}"
        for percentile, size in plan.token_percentiles.items()
    )
    yield "tokens per row", ", ".join(percentile_texts)
    if plan.positions_limit_length:
        yield "maximum length", f"{plan.max_length:,} tokens, the base model's positions; model.maxLength is higher"
    folds_text = f" of {plan.trainings} trainings ({plan.trainings - 1} folds)" if plan.trainings > 1 else ""
    yield "steps", f"{plan.steps:,}{folds_text}, {plan.steps_per_epoch:,} per epoch"
    shares_text = " that share the base model" if plan.estimated_memory.gathered else ""
    ranks_text = f", of {plan.workers} ranks{shares_text}" if plan.workers > 1 else ""
    yield f"{_name_batch(plan)} per step", f"{plan.batch:,}{ranks_text}"
    yield "base model", f"{plan.model_parameters:,} parameters"
    yield "adapter", f"{plan.trainable_parameters:,} parameters, {format_bytes(plan.adapter_bytes)}"
    yield "checkpoint", f"~ {format_bytes(plan.estimated_checkpoint_bytes)}"
    yield "scratch", f"at least {format_bytes(plan.scratch_bytes)}: {describe_parts(plan.scratch_parts)}"


def _name_batch(plan: Plan) -> str:
    if plan.prompts:
        return f"answers to {pluralize(plan.prompts, 'prompt')}"
    return "sequences" if plan.batching == "packed" else "rows"


def _memory_lines(memory: MemoryReport) -> Iterator[tuple[str, str]]:
    parts = memory.model_dump(include=set(_MEMORY_PARTS))
    yield "GPU memory", f"~ {format_bytes(memory.total)}: {describe_parts(parts)}"
    phases = {name: size for name, size in memory.model_dump().items() if name in _MEMORY_PHASES}
    yield "peak by phase", "~ " + describe_parts(phases)
    fitting_sizes = [f"{size} GB" for size, fits in memory.fits.items() if fits]
    yield (
        "fits a GPU of",
        f"~ {', '.join(fitting_sizes) or 'none of ' + ', '.join(f'{size} GB' for size in memory.fits)}",
    )


def _time_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    yield (
        "training time",
        "~ "
        + ", ".join(f"{gpu} {format_duration(max(seconds, 1))}" for gpu, seconds in plan.estimated_seconds.items()),
    )


def _servable_lines(servable: Servable) -> Iterator[tuple[str, str]]:
    yield "vLLM loads it", to_one_line(servable.vllm)
    yield "llama.cpp loads it", to_one_line(servable.llama_cpp)


def _grader_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    for preview in plan.graders:
        yield f"grader {preview.name}", f"{to_one_line(preview.describe())}, on the answers of the {preview.split} data"


def _preflight_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    for finding in plan.preflight:
        yield f"check: {finding.check}", f"{finding.status}: {to_one_line(finding.message)}"
