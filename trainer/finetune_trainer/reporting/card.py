"""`README.md` of an adapter: a model card as the Hugging Face hub reads it, and people do."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCardData

from finetune_trainer.contract import DatasetReport
from finetune_trainer.records.evaluation import BiasResult, EvaluationReport
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting import data_table, verdicts
from finetune_trainer.reporting.adapter_info import (
    AdapterInfo,
    describe_adapter,
    describe_training_length,
    list_settings,
    list_timings,
    parse_config,
)
from finetune_trainer.reporting.formatting import display_name, format_energy, format_estimate, format_number, pluralize
from finetune_trainer.reporting.markdown import escape, format_code, format_code_block, format_list, format_table
from finetune_trainer.text import escape_invisible, to_one_line

_HUB_METRICS = {"evalLoss": "loss", "macroF1": "f1", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge"}
"""The hub's names of what is named otherwise here."""
_MAX_SAMPLES = 3
_LOADING_TEXT = """\
Load it on the base model named above, which is not part of this folder:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

base = AutoModelForCausalLM.from_pretrained("PATH_OR_NAME_OF_THE_BASE_MODEL")
model = PeftModel.from_pretrained(base, "PATH_OF_THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")  # with the chat template that was trained on
model.generation_config = GenerationConfig.from_pretrained("PATH_OF_THIS_FOLDER")  # with the tokens that end an answer
```"""
_LIMITS_TEXT = """\
It is meant for prompts like those it was trained on. On others it may be worse than its base model, and it may repeat
what stands in its training rows. What the base model may not be used for, the adapter may not either."""


def render_card(manifest: AdapterManifest, evaluation: EvaluationReport, adapter_info: AdapterInfo) -> str:
    """The whole card, front matter first."""
    parts = [
        f"---\n{_render_front_matter(manifest, evaluation, adapter_info)}\n---",
        f"# LoRA adapter for {escape(adapter_info.base_name)}",
        _render_summary(manifest, adapter_info),
        _LOADING_TEXT,
        f"## Intended use and limits\n\n{_LIMITS_TEXT}",
        f"## Evaluation\n\n{_render_evaluation(evaluation)}",
        f"## Trust\n\n{_render_trust(evaluation)}",
        f"## Training data\n\n{_render_data(manifest)}",
        f"## Training\n\n{_render_training(manifest, evaluation, adapter_info)}",
        f"## Environment\n\n{_render_environment(manifest)}",
        _render_samples(evaluation),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _render_front_matter(manifest: AdapterManifest, evaluation: EvaluationReport, adapter_info: AdapterInfo) -> str:
    results = list(_build_hub_results(manifest, evaluation))
    name = escape_invisible(adapter_info.base_name).replace(
        "\n", " "
    )  # the end of the front matter is looked for line by line
    card_data = ModelCardData(
        base_model=name,
        library_name="peft",
        tags=["lora", parse_config(manifest).training.method, "finetune-operator"],
        pipeline_tag="text-generation",
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=f"LoRA adapter for {name}" if results else None,
        eval_results=results or None,
        base_model_relation="adapter",
    )
    return card_data.to_yaml()


def _build_hub_results(manifest: AdapterManifest, evaluation: EvaluationReport) -> Iterator[EvalResult]:
    """The tuned model's numbers, for the hub's `model-index`."""
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


def _render_summary(manifest: AdapterManifest, adapter_info: AdapterInfo) -> str:
    config = parse_config(manifest)
    training = config.training
    return format_list(
        (
            f"Base model: {format_code(config.model.uri)}, {format_code(manifest.model.revision)}",
            f"Adapter: {escape(describe_adapter(config, adapter_info), 4000)}",
            f"Training: {adapter_info.method_title}, {describe_training_length(config)}, {training.batch_size} x "
            f"{training.gradient_accumulation} rows per step, learning rate {training.learning_rate:g} "
            f"({training.scheduler}), loss on {training.loss}, {adapter_info.precision}, seed {training.seed}, backend "
            f"{escape(manifest.backend)}",
        )
    )


def _render_evaluation(evaluation: EvaluationReport) -> str:
    verdict = verdicts.quality_verdict(evaluation)
    verdict_text = f"**{verdict.text}.** {escape(verdict.detail)}".strip()
    if not evaluation.measures:
        return f"{verdict_text} Its answers were not evaluated."
    rows = [
        (
            f"{escape(display_name(measure.name))} ({'higher' if measure.higher_is_better else 'lower'} is better)",
            format_estimate(measure.base),
            format_estimate(measure.tuned),
            format_estimate(measure.change, sign=True) if measure.change else "not compared",
            f"{measure.tuned.samples:,}",
        )
        for measure in evaluation.measures
    ]
    note = "In brackets 95 % intervals; the change is the tuned model's number minus the base model's, row by row."
    return f"{verdict_text}\n\n{format_table(('Metric', 'Base', 'Tuned', 'Change', 'Rows'), rows)}\n\n{note}"


def _render_trust(evaluation: EvaluationReport) -> str:
    lines = [
        f"**{escape(verdict.text)}.** {escape(verdict.detail, 1500)}".strip()
        for verdict in verdicts.trust_verdicts(evaluation)
    ]
    folds = evaluation.cross_validation
    if folds:
        lines.append(
            f"**Cross-validation** over {len(folds.folds)} folds: {escape(display_name(folds.metric))} "
            f"{format_number(folds.mean)} ± {format_number(folds.deviation)}."
        )
    lines += [f"**Missing:** {escape(missing)}" for missing in evaluation.missing]
    tables = [_render_gate(evaluation), _render_bias(evaluation.bias)]
    return "\n\n".join(part for part in [format_list(lines), *tables] if part)


def _render_gate(evaluation: EvaluationReport) -> str:
    rows = [
        (
            escape(check.rule),
            "not measured" if check.value is None else format_number(check.value),
            "yes" if check.passed else "no",
        )
        for check in evaluation.gate
    ]
    return format_table(("Gate", "Value", "Passed"), rows) if rows else ""


def _render_bias(bias: BiasResult | None) -> str:
    if bias is None:
        return ""
    rows = [
        (
            escape(finding.category),
            finding.kind,
            format_estimate(finding.base),
            format_estimate(finding.tuned),
            format_estimate(finding.change, sign=True),
            "worse" if finding.flagged else "no",
        )
        for finding in bias.findings
    ]
    groups = [
        (escape(category), escape(name), f"{count:,}")
        for category, names in bias.representation.items()
        for name, count in names.items()
    ]
    return "\n\n".join(
        part
        for part in (
            format_table(("Bias", "Test", "Base", "Tuned", "Change", "Flagged"), rows) if rows else "",
            format_table(("Category", "Group", "Training rows"), groups) if groups else "",
            format_list(escape(note) for note in bias.notes),
        )
        if part
    )


def _render_data(manifest: AdapterManifest) -> str:
    report = manifest.dataset
    rows = [
        (escape(table_row.name), f"{table_row.rows:,}", table_row.meaning)
        for table_row in data_table.build_data_table(report)
    ]
    total_row = ("**rows read**", f"**{report.rows:,}**", "")
    inputs = [
        f"{format_code(record.uri)} {format_code('sha256:' + record.sha256 if record.sha256 else record.etag)}"
        for record in manifest.inputs
    ]
    shown_inputs = inputs[:20] + ([f"and {len(inputs) - 20:,} more in `manifest.json`"] if len(inputs) > 20 else [])
    counts = format_table(("Rows", "Count", "What became of them"), [*rows, total_row])
    return f"{counts}\n\n{format_list(_describe_counts(report))}\n\nRead from:\n\n{format_list(shown_inputs)}"


def _describe_counts(report: DatasetReport) -> Iterator[str]:
    yield f"{pluralize(report.tokens, 'token')}, of them {report.supervised_tokens:,} learnt"
    if report.augmented:
        yield f"{pluralize(report.augmented, 'row')} more, made of those by exchanging the terms of groups of people"
    yield f"{pluralize(report.cleaned, 'row')} normalised, {report.truncated:,} cut short"
    pii_counts = ", ".join(f"{escape(kind)} {count:,}" for kind, count in report.sensitive.items())
    yield (
        f"Rows with personal data or secrets: {pii_counts or 'none found'}; "
        f"{pluralize(report.redacted, 'place')} redacted"
    )
    yield f"Digest of all of it: {format_code(report.digest)}"


def _render_training(manifest: AdapterManifest, evaluation: EvaluationReport, adapter_info: AdapterInfo) -> str:
    rows = [*list_settings(parse_config(manifest), adapter_info, manifest), *list_timings(manifest.metrics)]
    rows.append(("Energy of the GPUs", format_energy(evaluation.energy)))
    return format_table(("Setting", "Value"), [(name, escape(value, 4000)) for name, value in rows])


def _render_environment(manifest: AdapterManifest) -> str:
    rows = [(escape(name), escape(version)) for name, version in manifest.versions.items()]
    created_text = f"Made {escape(manifest.created_at)}, config {format_code(manifest.config_digest)}."
    return f"{created_text}\n\n{format_table(('Package', 'Version'), rows)}" if rows else created_text


def _render_samples(evaluation: EvaluationReport) -> str:
    samples = evaluation.samples[:_MAX_SAMPLES]
    parts = [
        f"### Sample {index}\n\nPrompt:\n\n{format_code_block(sample.prompt)}\n\nBase "
        f"model:\n\n{format_code_block(sample.base)}\n\n"
        f"Tuned model:\n\n{format_code_block(sample.tuned)}"
        for index, sample in enumerate(samples, start=1)
    ]
    return "\n\n".join(["## Samples", *parts]) if parts else ""
