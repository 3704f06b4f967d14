"""Recommendations that follow from the results. Each sentence names the fields to change."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.evaluation.decisions import ChangeDirection, is_underpowered
from finetune_trainer.formatting import format_share, pluralize
from finetune_trainer.records.evaluation import BiasResult, ConfusionMatrix, EvaluationReport, Measure
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting.adapter_info import parse_config
from finetune_trainer.reporting.baselines import build_baseline_tables
from finetune_trainer.reporting.formatting import display_name
from finetune_trainer.reporting.verdicts import group_by_direction, list_judged_measures, list_preflight_warnings
from finetune_trainer.text import to_one_line

_MIN_ROWS = 100
_MANY_DROPPED_SHARE = 0.1
_FALLING_RATIO = 0.99
"""Minimum ratio of successive validation losses from which the loss counts as converged."""
_RISEN_RATIO = 1.02
"""Minimum ratio of the last to the lowest validation loss from which the loss counts as risen."""
_RELEVANT_CHANGE = 0.01
"""Relative change of a metric from a baseline. A smaller one is no reason for advice."""
_REMEDIES = {
    "overlength": "raise model.maxLength, up to the base model's positions, or set "
    "dataset.preparation.overlength: truncate",
    "invalid": "correct them at their source; the report shows examples and their errors",
    "noSupervisedTokens": "raise model.maxLength so that their answers fit, or, if all of their answers have weight 0, "
    "remove them",
    "echo": "set dataset.preparation.dropEchoes to false if they are intended",
    "tooShort": "lower dataset.preparation.minTokens if they are intended",
    "emptyAnswer": "add an answer, or remove them from the data",
    "promptsDiffer": "give both answers of a pair the same prompt",
}
"""What to do about rejected rows, by reason. Duplicates need no action."""


def build_advice(evaluation: EvaluationReport, manifest: AdapterManifest) -> list[str]:
    """Return the recommendations, most important first. There is at least one."""
    config = parse_config(manifest)
    sentences = [
        *_advise_on_gate(evaluation),
        *_advise_on_preflight(evaluation),
        *_advise_on_overfitting(evaluation, manifest),
        *_advise_on_forgetting(evaluation),
        *_advise_on_quality(group_by_direction(evaluation), evaluation),
        *_advise_on_baselines(evaluation),
        *_advise_on_labels(evaluation.confusion),
        *_advise_on_missing(evaluation),
        *_advise_on_row_count(evaluation),
        *_advise_on_small_effect(evaluation, manifest),
        *_advise_on_bias(evaluation.bias),
        *_advise_on_folds(evaluation),
        *_advise_on_data(manifest),
        *_advise_on_pii(config, manifest),
    ]
    return sentences or ["No problems were found. Try the adapter on your own prompts before you deploy it."]


def _advise_on_gate(evaluation: EvaluationReport) -> Iterator[str]:
    failed = [to_one_line(check.rule, 200) for check in evaluation.gate if not check.passed]
    if failed:
        yield (
            f"Do not deploy this adapter: it fails {pluralize(len(failed), 'rule')} of the gate ({'; '.join(failed)})."
        )


def _advise_on_preflight(evaluation: EvaluationReport) -> Iterator[str]:
    warnings = list_preflight_warnings(evaluation)
    if warnings:
        names = ", ".join(to_one_line(finding.check, 60) for finding in warnings)
        yield f"Read the warnings of the preflight checks ({names})."


def _advise_on_overfitting(evaluation: EvaluationReport, manifest: AdapterManifest) -> Iterator[str]:
    result = evaluation.overfitting
    if result.verdict == "overfitting":
        yield _describe_shorter_training(result.best_step, manifest)
    elif not (manifest.dataset.validation or manifest.dataset.test or evaluation.cross_validation):
        yield "Hold out validation rows (dataset.validation.fraction: 0.05): otherwise quality on new rows is unknown."
    elif _is_still_falling(evaluation) and not _is_overtrained(evaluation):
        yield "The validation loss was still falling at the end: train longer (training.epochs or training.maxSteps)."


def _describe_shorter_training(best_step: int | None, manifest: AdapterManifest) -> str:
    steps = int(manifest.metrics.get("steps", 0))
    duration = f"to about step {best_step:,}" + (f" of {steps:,}" if steps else "") if best_step else "for fewer epochs"
    field = f"training.maxSteps: {best_step}" if best_step else "training.epochs"
    return (
        f"Train only {duration} ({field}), set training.earlyStopping, or regularize the training: lower "
        "training.learningRate or training.lora.rank, or add training.lora.dropout. More varied rows help most."
    )


def _is_still_falling(evaluation: EvaluationReport) -> bool:
    losses = [point.loss for point in evaluation.validation_losses]
    return len(losses) > 2 and losses[-1] < _FALLING_RATIO * losses[-2] and losses[-2] < _FALLING_RATIO * losses[-3]


def _is_overtrained(evaluation: EvaluationReport) -> bool:
    """Return whether other advice is to train less. Then no advice may be to train more."""
    losses = [point.loss for point in evaluation.validation_losses]
    has_risen = bool(losses) and losses[-1] > _RISEN_RATIO * min(losses)
    return has_risen or evaluation.overfitting.verdict == "overfitting" or _is_forgetting(evaluation)


def _is_forgetting(evaluation: EvaluationReport) -> bool:
    return evaluation.forgetting is not None and evaluation.forgetting.verdict == "forgetting"


def _advise_on_forgetting(evaluation: EvaluationReport) -> Iterator[str]:
    if _is_forgetting(evaluation):
        yield (
            "The model forgot general knowledge of the base model: mix general rows into the data, or lower "
            "training.learningRate."
        )


def _advise_on_quality(
    names_by_direction: dict[ChangeDirection, list[str]], evaluation: EvaluationReport
) -> Iterator[str]:
    if not any(names for direction, names in names_by_direction.items() if direction != "unknown"):
        yield f"Compare the answers of both models yourself: {_explain_no_test(evaluation)}."
    if names_by_direction["worse"]:
        yield f"Check the samples for what got worse ({', '.join(names_by_direction['worse'])})."


def _explain_no_test(evaluation: EvaluationReport) -> str:
    if list_judged_measures(evaluation):
        return "no change was tested"
    return "only cross-validation was run" if evaluation.cross_validation else "there are no validation rows"


def _advise_on_baselines(evaluation: EvaluationReport) -> Iterator[str]:
    for table in build_baseline_tables(evaluation):
        worse = [row for row in table.rows if row.direction == "worse" and row.relative_change >= _RELEVANT_CHANGE]
        if worse:
            names = ", ".join(to_one_line(display_name(row.measure.name), 60) for row in worse)
            yield f"Read the samples before you replace the baseline {table.name}: {names} got worse."


def _advise_on_labels(confusion: ConfusionMatrix | None) -> Iterator[str]:
    """Compare the tuned model with one that always answers the most frequent label."""
    if confusion is None:
        return
    row_sums = [sum(row) for row in confusion.counts]
    right_count = sum(row[index] for index, row in enumerate(confusion.counts))
    if right_count <= max(row_sums):
        frequent = to_one_line(confusion.labels[row_sums.index(max(row_sums))], 60)
        yield (
            f"Do not rely on the labels yet: {format_share(right_count, sum(row_sums))} of them are right, no more "
            f"than if all answers were the most frequent one ({frequent}, "
            f"{format_share(max(row_sums), sum(row_sums))}). See the confusion matrix."
        )


def _advise_on_missing(evaluation: EvaluationReport) -> Iterator[str]:
    names = [to_one_line(entry.partition(":")[0], 100) for entry in evaluation.missing]
    if names:
        yield f"Read what was not measured, or only in part: {', '.join(names)}."


def _select_underpowered(evaluation: EvaluationReport) -> list[Measure]:
    underpowered = [measure for measure in list_judged_measures(evaluation) if is_underpowered(measure)]
    return [measure for measure in underpowered if measure.tuned.samples < _MIN_ROWS]


def _advise_on_row_count(evaluation: EvaluationReport) -> Iterator[str]:
    measures = _select_underpowered(evaluation)
    if measures:
        names = ", ".join(to_one_line(display_name(measure.name), 60) for measure in measures)
        counts = sorted({measure.tuned.samples for measure in measures})
        row_range = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        yield (
            f"Measure on more rows ({_name_rows(evaluation)}): {names} had only {row_range}, too few to distinguish "
            "a change from chance."
        )


def _name_rows(evaluation: EvaluationReport) -> str:
    """Return the field with the rows that the quality is judged on."""
    is_test = list_judged_measures(evaluation) == evaluation.test_measures
    return "evaluation.test" if is_test else "dataset.validation"


def _advise_on_small_effect(evaluation: EvaluationReport, manifest: AdapterManifest) -> Iterator[str]:
    names_by_direction = group_by_direction(evaluation)
    is_overfitted = evaluation.overfitting.verdict == "overfitting"  # has its own advice
    if (
        is_overfitted
        or not names_by_direction["unclear"]
        or names_by_direction["better"]
        or names_by_direction["worse"]
        or _select_underpowered(evaluation)
    ):
        return
    add_rows = f"add training rows (now {manifest.dataset.kept:,})"
    if _is_overtrained(evaluation):
        yield f"The training had little measurable effect: {add_rows}."
    else:
        train_harder = "train longer, raise training.learningRate or training.lora.rank"
        yield f"The training had little measurable effect: {train_harder}, or {add_rows}."


def _advise_on_bias(bias: BiasResult | None) -> Iterator[str]:
    for category in sorted({finding.category for finding in bias.findings if finding.flagged} if bias else []):
        groups = bias.representation.get(category, {}) if bias else {}
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(groups.items()))
        yield (
            f"Check the rows that mention {category}" + (f" ({counts})" if counts else "") + ": balance them, or add "
            "counterfactual rows, and train again. Do not use the adapter for decisions about people."
        )


def _advise_on_folds(evaluation: EvaluationReport) -> Iterator[str]:
    cross_validation = evaluation.cross_validation
    if cross_validation and cross_validation.mean and cross_validation.deviation > 0.1 * abs(cross_validation.mean):
        spread = format_share(cross_validation.deviation, abs(cross_validation.mean))
        yield f"The result depends on the choice of rows (folds differ by {spread}): add rows before you rely on it."


def _advise_on_data(manifest: AdapterManifest) -> Iterator[str]:
    report = manifest.dataset
    for reason, count in sorted(report.rejected.items(), key=lambda item: -item[1]):
        if reason in _REMEDIES and count > _MANY_DROPPED_SHARE * report.rows:
            share_text = format_share(count, report.rows)
            yield f"{pluralize(count, 'row')} ({share_text}) were rejected as {reason}: {_REMEDIES[reason]}."
    if report.truncated > _MANY_DROPPED_SHARE * report.kept:
        share_text = format_share(report.truncated, report.kept)
        yield f"{pluralize(report.truncated, 'row')} ({share_text}) were truncated: raise model.maxLength."


def _advise_on_pii(config: TrainerConfig, manifest: AdapterManifest) -> Iterator[str]:
    redacted = {str(kind) for kind in config.dataset.preparation.redact}
    unredacted = [kind for kind, count in manifest.dataset.sensitive.items() if count and kind not in redacted]
    if unredacted:
        yield (
            f"The model may repeat personal data or secrets from the training data ({', '.join(unredacted)}): set "
            f"dataset.preparation.redact: [{', '.join(unredacted)}] unless they are intended."
        )
