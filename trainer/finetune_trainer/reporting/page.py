"""`report.html`: one self-contained page with the results of a run."""

from __future__ import annotations

from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from finetune_trainer.evaluation.decisions import change_direction
from finetune_trainer.records.adapter import AdapterInfo
from finetune_trainer.records.evaluation import EvaluationReport, Sample
from finetune_trainer.records.manifest import ROW_SCORES_NAME, AdapterManifest
from finetune_trainer.reporting import charts, data_table, held_out_test, verdicts
from finetune_trainer.reporting.adapter_info import (
    get_run_name,
    list_servers,
    list_settings,
    list_timings,
    parse_config,
)
from finetune_trainer.reporting.advice import build_advice
from finetune_trainer.reporting.baselines import build_baseline_tables
from finetune_trainer.reporting.environment import create_environment

MAX_SHOWN = 20
"""Maximum number of samples and of examples of rejected rows. `evaluation.json` has all of them."""
MAX_INPUTS = 50


def render_page(manifest: AdapterManifest, evaluation: EvaluationReport, adapter_info: AdapterInfo) -> str:
    """Render the page. It loads no resources and runs no scripts."""
    context = {
        "manifest": manifest,
        "evaluation": evaluation,
        "adapter": adapter_info,
        "max_shown": MAX_SHOWN,
        "max_inputs": MAX_INPUTS,
        "run_name": get_run_name(manifest),
        "files": _list_files(evaluation),
        "sample_groups": _group_samples(evaluation),
        **_verdict_context(manifest, evaluation),
        **_chart_context(manifest, evaluation),
        **_settings_context(manifest, adapter_info),
    }
    return create_environment().get_template("page.html.j2").render(context)


def _list_files(evaluation: EvaluationReport) -> list[tuple[str, str]]:
    """Return name and content of the files next to the page."""
    files = [("run.log", "log of the run"), ("evaluation.json", "all numbers of this page")]
    if evaluation.rows:
        has_answers = evaluation.task or evaluation.max_new_tokens
        content = "losses of the validation rows" + (", answers and their scores" if has_answers else "")
        files.append((ROW_SCORES_NAME, content))
    return files


def _group_samples(evaluation: EvaluationReport) -> list[tuple[str, str, list[Sample]]]:
    """Return title, explanation and samples of each group that has any."""
    titles: dict[str, tuple[str, str]] = {
        "prompt": ("Your prompts", "The prompts of evaluation.samplePrompts. They have no reference answer."),
        "row": ("Validation rows", "The first rows that were held out from training, with the answers of the data."),
    }
    groups = [(*titles[kind], [sample for sample in evaluation.samples if sample.kind == kind]) for kind in titles]
    return [group for group in groups if group[2]]


def _verdict_context(manifest: AdapterManifest, evaluation: EvaluationReport) -> dict[str, Any]:
    return {
        "headline": verdicts.quality_verdict(evaluation),
        "limits": verdicts.describe_limits(evaluation),
        "checks": verdicts.trust_verdicts(evaluation),
        "directions": [change_direction(measure) for measure in evaluation.measures],
        "has_intervals": any(measure.change and measure.change.low is not None for measure in evaluation.measures),
        "baselines": build_baseline_tables(evaluation),
        "test": held_out_test.build_section(evaluation),
        "advice": build_advice(evaluation, manifest),
    }


def _chart_context(manifest: AdapterManifest, evaluation: EvaluationReport) -> dict[str, Any]:
    return {
        "data_table": data_table.build_data_table(manifest.dataset),
        "losses": charts.build_loss_chart(evaluation),
        "rewards": charts.build_reward_charts(evaluation),
        "lengths": charts.build_length_histogram(evaluation.lengths),
        "whiskers": [charts.build_whisker(measure.change, measure.higher_is_better) for measure in evaluation.measures],
    }


def _settings_context(manifest: AdapterManifest, adapter_info: AdapterInfo) -> dict[str, Any]:
    return {
        "settings": list(list_settings(parse_config(manifest), adapter_info, manifest)),
        "timings": list(list_timings(manifest.metrics)),
        "servers": list_servers(manifest.servable),
        "config_text": _format_yaml(manifest.config),
    }


def _format_yaml(config: dict[str, Any]) -> str:
    """Format the config as YAML, as in the `spec` of a FineTuneJob."""
    writer, buffer = YAML(), StringIO()
    writer.width = 100
    writer.dump(config, buffer)
    return buffer.getvalue()
