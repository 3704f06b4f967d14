"""`README.md` of an adapter: a model card as the Hugging Face hub reads it, and people do."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCardData

from finetune_trainer.contract import DatasetReport
from finetune_trainer.records.evaluation import Bias, Evaluation
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting import data_table, verdicts
from finetune_trainer.reporting.adapter_info import (
    METHODS,
    AdapterFacts,
    adapter_text,
    config_of,
    settings,
    took,
    training_length,
)
from finetune_trainer.reporting.formatting import energy, estimate, measure_name, number, plural
from finetune_trainer.reporting.markdown import bullets, code, escaped, fenced, table
from finetune_trainer.text import one_line, visible

_HUB_METRICS = {"evalLoss": "loss", "macroF1": "f1", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge"}
"""The hub's names of what is named otherwise here."""
_SAMPLES = 3
_LOAD = """\
Load it on the base model named above, which is not part of this folder:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

base = AutoModelForCausalLM.from_pretrained("PATH_OR_NAME_OF_THE_BASE_MODEL")
model = PeftModel.from_pretrained(base, "PATH_OF_THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")  # with the chat template that was trained on
model.generation_config = GenerationConfig.from_pretrained("PATH_OF_THIS_FOLDER")  # with the tokens that end an answer
```"""
_LIMITS = """\
It is meant for prompts like those it was trained on. On others it may be worse than its base model, and it may repeat
what stands in its training rows. What the base model may not be used for, the adapter may not either."""


def card(manifest: AdapterManifest, evaluation: Evaluation, facts: AdapterFacts) -> str:
    """The whole card, front matter first."""
    parts = [
        f"---\n{_front_matter(manifest, evaluation, facts)}\n---",
        f"# LoRA adapter for {escaped(facts.base_name)}",
        _what(manifest, facts),
        _LOAD,
        f"## Intended use and limits\n\n{_LIMITS}",
        f"## Evaluation\n\n{_evaluation(evaluation)}",
        f"## Trust\n\n{_trust(evaluation)}",
        f"## Training data\n\n{_data(manifest)}",
        f"## Training\n\n{_training(manifest, evaluation, facts)}",
        f"## Environment\n\n{_environment(manifest)}",
        _samples(evaluation),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(manifest: AdapterManifest, evaluation: Evaluation, facts: AdapterFacts) -> str:
    results = list(_results(manifest, evaluation))
    name = visible(facts.base_name).replace("\n", " ")  # the end of the front matter is looked for line by line
    data = ModelCardData(
        base_model=name,
        library_name="peft",
        tags=["lora", config_of(manifest).training.method, "finetune-operator"],
        pipeline_tag="text-generation",
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=f"LoRA adapter for {name}" if results else None,
        eval_results=results or None,
        base_model_relation="adapter",
    )
    return data.to_yaml()


def _results(manifest: AdapterManifest, evaluation: Evaluation) -> Iterator[EvalResult]:
    """The tuned model's numbers, for the hub's `model-index`."""
    for measure in evaluation.measures:
        yield EvalResult(
            task_type="text-generation",
            task_name=evaluation.task,
            dataset_type="private",
            dataset_name="validation rows of the run",
            dataset_revision=manifest.dataset.digest,
            metric_type=_HUB_METRICS.get(measure.name, one_line(measure.name, 100)),
            metric_name=one_line(measure_name(measure.name), 100),
            metric_value=measure.tuned.value,
        )


def _what(manifest: AdapterManifest, facts: AdapterFacts) -> str:
    config = config_of(manifest)
    training = config.training
    return bullets(
        (
            f"Base model: {code(config.model.uri)}, {code(manifest.model.revision)}",
            f"Adapter: {escaped(adapter_text(config, facts), 4000)}",
            f"Training: {METHODS[training.method]}, {training_length(config)}, {training.batch_size} x "
            f"{training.gradient_accumulation} rows per step, learning rate {training.learning_rate:g} "
            f"({training.scheduler}), loss on {training.loss}, {facts.precision}, seed {training.seed}, backend "
            f"{escaped(manifest.backend)}",
        )
    )


def _evaluation(evaluation: Evaluation) -> str:
    verdict = verdicts.quality(evaluation)
    said = f"**{verdict.text}.** {escaped(verdict.detail)}".strip()
    if not evaluation.measures:
        return f"{said} Its answers were not evaluated."
    rows = [
        (
            f"{escaped(measure_name(each.name))} ({'higher' if each.higher_is_better else 'lower'} is better)",
            estimate(each.base),
            estimate(each.tuned),
            estimate(each.change, sign=True) if each.change else "not compared",
            f"{each.tuned.samples:,}",
        )
        for each in evaluation.measures
    ]
    note = "In brackets 95 % intervals; the change is the tuned model's number minus the base model's, row by row."
    return f"{said}\n\n{table(('Metric', 'Base', 'Tuned', 'Change', 'Rows'), rows)}\n\n{note}"


def _trust(evaluation: Evaluation) -> str:
    said = [f"**{escaped(each.text)}.** {escaped(each.detail, 1500)}".strip() for each in verdicts.trust(evaluation)]
    folds = evaluation.cross_validation
    if folds:
        said.append(
            f"**Cross-validation** over {len(folds.folds)} folds: {escaped(measure_name(folds.metric))} "
            f"{number(folds.mean)} ± {number(folds.deviation)}."
        )
    said += [f"**Missing:** {escaped(each)}" for each in evaluation.missing]
    tables = [_gate_table(evaluation), _bias_tables(evaluation.bias)]
    return "\n\n".join(part for part in [bullets(said), *tables] if part)


def _gate_table(evaluation: Evaluation) -> str:
    rows = [
        (
            escaped(check.rule),
            "not measured" if check.value is None else number(check.value),
            "yes" if check.passed else "no",
        )
        for check in evaluation.gate
    ]
    return table(("Gate", "Value", "Passed"), rows) if rows else ""


def _bias_tables(bias: Bias | None) -> str:
    if bias is None:
        return ""
    rows = [
        (
            escaped(each.category),
            each.kind,
            estimate(each.base),
            estimate(each.tuned),
            estimate(each.change, sign=True),
            "worse" if each.flagged else "no",
        )
        for each in bias.findings
    ]
    groups = [
        (escaped(category), escaped(name), f"{count:,}")
        for category, names in bias.representation.items()
        for name, count in names.items()
    ]
    return "\n\n".join(
        part
        for part in (
            table(("Bias", "Test", "Base", "Tuned", "Change", "Flagged"), rows) if rows else "",
            table(("Category", "Group", "Training rows"), groups) if groups else "",
            bullets(escaped(note) for note in bias.notes),
        )
        if part
    )


def _data(manifest: AdapterManifest) -> str:
    report = manifest.dataset
    rows = [(escaped(line.name), f"{line.rows:,}", line.meaning) for line in data_table.lines(report)]
    total = ("**rows read**", f"**{report.rows:,}**", "")
    inputs = [
        f"{code(each.uri)} {code('sha256:' + each.sha256 if each.sha256 else each.etag)}" for each in manifest.inputs
    ]
    shown = inputs[:20] + ([f"and {len(inputs) - 20:,} more in `manifest.json`"] if len(inputs) > 20 else [])
    counts = table(("Rows", "Count", "What became of them"), [*rows, total])
    return f"{counts}\n\n{bullets(_counts(report))}\n\nRead from:\n\n{bullets(shown)}"


def _counts(report: DatasetReport) -> Iterator[str]:
    yield f"{plural(report.tokens, 'token')}, of them {report.supervised_tokens:,} learnt"
    if report.augmented:
        yield f"{plural(report.augmented, 'row')} more, made of those by exchanging the terms of groups of people"
    yield f"{plural(report.cleaned, 'row')} normalised, {report.truncated:,} cut short"
    found = ", ".join(f"{escaped(kind)} {count:,}" for kind, count in report.sensitive.items())
    yield f"Rows with personal data or secrets: {found or 'none found'}; {plural(report.redacted, 'place')} redacted"
    yield f"Digest of all of it: {code(report.digest)}"


def _training(manifest: AdapterManifest, evaluation: Evaluation, facts: AdapterFacts) -> str:
    pairs = [*settings(config_of(manifest), facts, manifest), *took(manifest.metrics)]
    pairs.append(("Energy of the GPUs", energy(evaluation.energy)))
    return table(("Setting", "Value"), [(name, escaped(value, 4000)) for name, value in pairs])


def _environment(manifest: AdapterManifest) -> str:
    rows = [(escaped(name), escaped(version)) for name, version in manifest.versions.items()]
    made = f"Made {escaped(manifest.created_at)}, config {code(manifest.config_digest)}."
    return f"{made}\n\n{table(('Package', 'Version'), rows)}" if rows else made


def _samples(evaluation: Evaluation) -> str:
    chosen = evaluation.samples[:_SAMPLES]
    parts = [
        f"### Sample {place}\n\nPrompt:\n\n{fenced(each.prompt)}\n\nBase model:\n\n{fenced(each.base)}\n\n"
        f"Tuned model:\n\n{fenced(each.tuned)}"
        for place, each in enumerate(chosen, start=1)
    ]
    return "\n\n".join(["## Samples", *parts]) if parts else ""
