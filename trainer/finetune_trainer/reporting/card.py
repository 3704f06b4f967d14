"""`README.md` of an adapter: a model card for people and for the Hugging Face hub, rendered from `card.md.j2`.

`huggingface_hub.ModelCard.from_template` is not used, because its template has no filters and no escaping. Here every
value is escaped as Markdown unless a filter returns it as `Markdown`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from finetune_trainer.contract import DataSource, TrainerConfig
from finetune_trainer.evaluation.intervals import MIN_SAMPLES
from finetune_trainer.formatting import format_number, pluralize
from finetune_trainer.modeling.servable import VLLM_RANKS, YES, choose_vllm_rank
from finetune_trainer.records.adapter import AdapterInfo
from finetune_trainer.records.evaluation import Estimate, EvaluationReport
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting import data_table, held_out_test, verdicts
from finetune_trainer.reporting.adapter_info import (
    describe_adapter,
    describe_step,
    describe_training_length,
    get_run_name,
    list_servers,
    list_settings,
    list_timings,
    parse_config,
)
from finetune_trainer.reporting.baselines import build_baseline_tables
from finetune_trainer.reporting.formatting import display_name, format_energy, format_estimate, format_p_value
from finetune_trainer.reporting.markdown import Markdown, escape, format_code, format_code_block
from finetune_trainer.text import escape_invisible, to_one_line

_HUB_METRICS = {
    "evalLoss": "loss",
    "exactMatch": "exact_match",
    "macroF1": "f1",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "testLoss": "loss",
    "testAccuracy": "accuracy",
    "testMacroF1": "f1",
    "testRouge1": "rouge",
    "testRouge2": "rouge",
    "testRougeL": "rouge",
    "testBleu": "bleu",
    "testChrf": "chrf",
    "testExactMatch": "exact_match",
}
"""Names of metrics on the hub that differ from those in `evaluation.json`."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
"""Name of a model that the hub accepts as a base model."""
_HUB_DATASETS = "hf://datasets/"
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
        "run_name": get_run_name(manifest),
        "servers": list_servers(manifest.servable),
        "usage": _build_usage(manifest, adapter_info),
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
        "step": describe_step(config.training),
        "adapter": adapter_info,
        "adapter_text": describe_adapter(config, adapter_info),
        "settings": [*settings, ("Energy of the GPUs", format_energy(evaluation.energy))],
    }


@dataclass(frozen=True)
class _Usage:
    """Values of the code examples."""

    base_model: str
    """Name on the hub, or a placeholder."""
    revision: str
    """Commit of the base model on the hub, or an empty text if the model comes from elsewhere."""
    served_name: str
    """Name of the adapter at a server."""
    max_rank: int
    """Smallest value of vLLM's `--max-lora-rank` that the adapter fits, or 0 if vLLM cannot load it."""


def _build_usage(manifest: AdapterManifest, adapter_info: AdapterInfo) -> _Usage:
    lora = parse_config(manifest).training.lora
    is_loaded = manifest.servable.vllm.startswith(YES) if manifest.servable else lora.variant != "dora"
    max_rank = choose_vllm_rank(lora.rank) if is_loaded and lora.rank <= VLLM_RANKS[-1] else 0
    served_name = re.sub(r"[^A-Za-z0-9._-]+", "-", get_run_name(manifest).rpartition("/")[2]) or "adapter"
    base_model = adapter_info.base_name if _HUB_NAME.fullmatch(adapter_info.base_name) else "PATH_OF_THE_BASE_MODEL"
    revision = manifest.model.revision if manifest.model.uri == f"hf://{base_model}" else ""
    return _Usage(base_model, revision, served_name, max_rank)


def _list_hub_datasets(config: TrainerConfig) -> list[str]:
    """Return the names of the datasets on the hub that the adapter was trained on."""
    paths = [source.uri.removeprefix(_HUB_DATASETS) for source in config.dataset.sources if _is_hub_source(source)]
    return list(dict.fromkeys("/".join(path.split("/")[:2]).partition("@")[0] for path in paths))


def _is_hub_source(source: DataSource) -> bool:
    return source.uri.startswith(_HUB_DATASETS)


def _build_evaluation_context(evaluation: EvaluationReport) -> dict[str, Any]:
    return {
        "limits": verdicts.describe_limits(evaluation),
        "quality": verdicts.quality_verdict(evaluation),
        "measures": evaluation.measures,
        "has_p_values": any(measure.p_value is not None for measure in evaluation.measures),
        "min_interval_rows": MIN_SAMPLES,
        "baselines": build_baseline_tables(evaluation),
        "test": held_out_test.build_section(evaluation),
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
    config, is_hub_name = parse_config(manifest), _HUB_NAME.fullmatch(name)
    license_fields = _choose_license(config, manifest)
    return ModelCardData(
        base_model=name if is_hub_name else None,
        library_name="peft",
        license=license_fields.get("license"),
        license_name=license_fields.get("license_name"),
        license_link=license_fields.get("license_link"),
        language=config.output.languages or None,
        datasets=_list_hub_datasets(config) or None,
        tags=["lora", config.training.method, "finetune-operator"],
        pipeline_tag="text-generation",
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=f"LoRA adapter for {name}" if results else None,
        eval_results=results or None,
        base_model_relation="adapter" if is_hub_name else None,
    )


def _choose_license(config: TrainerConfig, manifest: AdapterManifest) -> dict[str, str]:
    """Return the license of the adapter: the one of the config, or else that of the base model's card on the hub."""
    return {"license": config.output.license} if config.output.license else manifest.model.license_fields


def _build_hub_results(manifest: AdapterManifest, evaluation: EvaluationReport) -> Iterator[EvalResult]:
    """Yield the metrics of the tuned model for the `model-index` of the hub."""
    test_measures = evaluation.test_measures or []
    for measure in [*evaluation.measures, *test_measures]:
        is_test = measure in test_measures
        yield EvalResult(
            task_type="text-generation",
            task_name=evaluation.task,
            dataset_type="private",
            dataset_name="test rows of the run" if is_test else "validation rows of the run",
            dataset_split="test" if is_test else None,  # the hub merges results whose datasets differ in the name alone
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
        "change": _format_change,
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


def _format_change(change: Estimate | None, p_value: float | None) -> Markdown:
    """Format a change with its interval, or with the p-value of its exact test."""
    if change is None:
        return Markdown("not tested")
    p_value_text = "" if p_value is None else f", {format_p_value(p_value).replace('<', '&lt;')}"
    return Markdown(format_estimate(change, True) + p_value_text)


def _format_markdown_estimate(estimate: Estimate | None, sign: bool = False) -> Markdown:
    return Markdown(format_estimate(estimate, sign))  # a leading `+` is not a list item inside a table
