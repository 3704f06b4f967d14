"""`README.md` of an adapter: a model card for people and for the Hugging Face hub, rendered from `card.md.j2`.

`huggingface_hub.ModelCard.from_template` is not used, because its template has no filters and no escaping. Here every
value is escaped as Markdown unless a filter returns it as `Markdown`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from finetune_trainer.formatting import format_number, pluralize
from finetune_trainer.records.adapter import AdapterInfo
from finetune_trainer.records.evaluation import Estimate, EvaluationReport
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting import data_table, verdicts
from finetune_trainer.reporting.adapter_info import (
    describe_adapter,
    describe_training_length,
    list_settings,
    list_timings,
    parse_config,
)
from finetune_trainer.reporting.formatting import display_name, format_energy, format_estimate
from finetune_trainer.reporting.markdown import Markdown, escape, format_code, format_code_block
from finetune_trainer.text import escape_invisible, to_one_line

_HUB_METRICS = {"evalLoss": "loss", "macroF1": "f1", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge"}
"""Names of metrics on the hub that differ from those in `evaluation.json`."""
_MAX_SAMPLES = 3
_MAX_INPUTS = 20


def render_card(manifest: AdapterManifest, evaluation: EvaluationReport, adapter_info: AdapterInfo) -> str:
    """Render the model card, with its YAML front matter."""
    context = {
        "front_matter": Markdown(_build_card_data(manifest, evaluation, adapter_info).to_yaml()),
        "manifest": manifest,
        "evaluation": evaluation,
        **_build_training_context(manifest, evaluation, adapter_info),
        **_build_evaluation_context(evaluation),
        "dataset": manifest.dataset,
        "data_table": data_table.build_data_table(manifest.dataset),
        "max_inputs": _MAX_INPUTS,
        "samples": evaluation.samples[:_MAX_SAMPLES],
    }
    return _create_environment().get_template("card.md.j2").render(context)


def _build_training_context(
    manifest: AdapterManifest, evaluation: EvaluationReport, adapter_info: AdapterInfo
) -> dict[str, Any]:
    config = parse_config(manifest)
    settings = [*list_settings(config, adapter_info, manifest), *list_timings(manifest.metrics)]
    return {
        "config": config,
        "training": config.training,
        "method": adapter_info.method_title,
        "training_length": describe_training_length(config),
        "adapter": adapter_info,
        "adapter_text": describe_adapter(config, adapter_info),
        "settings": [*settings, ("Energy of the GPUs", format_energy(evaluation.energy))],
    }


def _build_evaluation_context(evaluation: EvaluationReport) -> dict[str, Any]:
    return {
        "quality": verdicts.quality_verdict(evaluation),
        "measures": evaluation.measures,
        "checks": verdicts.trust_verdicts(evaluation),
        "folds": evaluation.cross_validation,
        "bias": evaluation.bias,
    }


def _build_card_data(
    manifest: AdapterManifest, evaluation: EvaluationReport, adapter_info: AdapterInfo
) -> ModelCardData:
    results = list(_build_hub_results(manifest, evaluation))
    # On one line, because the hub searches the end of the front matter line by line.
    name = escape_invisible(adapter_info.base_name).replace("\n", " ")
    return ModelCardData(
        base_model=name,
        library_name="peft",
        tags=["lora", parse_config(manifest).training.method, "finetune-operator"],
        pipeline_tag="text-generation",
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=f"LoRA adapter for {name}" if results else None,
        eval_results=results or None,
        base_model_relation="adapter",
    )


def _build_hub_results(manifest: AdapterManifest, evaluation: EvaluationReport) -> Iterator[EvalResult]:
    """Yield the metrics of the tuned model for the `model-index` of the hub."""
    for measure in evaluation.measures:
        yield EvalResult(
            task_type="text-generation",
            task_name=evaluation.task,
            dataset_type="private",
            dataset_name="validation rows of the run",
            dataset_revision=manifest.dataset.digest,
            metric_type=_HUB_METRICS.get(measure.name, to_one_line(measure.name, 100)),
            metric_name=to_one_line(display_name(measure.name), 100),
            metric_value=measure.tuned.value,
        )


@cache
def _create_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("finetune_trainer.reporting"),
        autoescape=select_autoescape(),  # HTML only; `finalize` escapes for Markdown
        finalize=_escape_unless_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "after_space": _format_after_space,
        "code": format_code,
        "code_block": format_code_block,
        "count": lambda count: Markdown(f"{count:,}"),
        "display_name": display_name,
        "escape": escape,
        "estimate": _format_markdown_estimate,
        "number": lambda value: Markdown(format_number(value)),
        "plural": pluralize,
    }
    return environment


def _escape_unless_markdown(value: object) -> str:
    return value if isinstance(value, Markdown) else escape(str(value))


def _format_after_space(text: str, limit: int = 400) -> Markdown:
    """Escape an optional sentence that follows another one."""
    return Markdown(f" {escape(text, limit)}" if text else "")


def _format_markdown_estimate(estimate: Estimate | None, sign: bool = False) -> Markdown:
    return Markdown(format_estimate(estimate, sign))  # a leading `+` is not a list item inside a table
