"""What to do next, from what was found. Each sentence names the fields to change."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.evaluation.overfitting import forgets
from finetune_trainer.records.evaluation import Bias, Evaluation, Measure
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting.adapter_info import config_of
from finetune_trainer.reporting.formatting import measure_name, plural, share
from finetune_trainer.reporting.verdicts import Direction, by_direction, direction
from finetune_trainer.text import one_line

_FEW_ROWS = 100
_MANY_LEFT_OUT = 0.1
_STILL = 0.99
"""A validation loss that falls by less than a hundredth is near its end."""
_RISEN = 1.02
"""A last validation loss that is so many times the lowest has risen."""
_REMEDIES = {
    "overlength": "raise model.maxLength, up to the base model's positions, or set "
    "dataset.preparation.overlength: truncate",
    "invalid": "mend them where they come from; the examples above say what is wrong",
    "noSupervisedTokens": "raise model.maxLength, so that the answers fit",
    "tooShort": "lower dataset.preparation.minTokens if they are meant",
    "emptyAnswer": "give them an answer, or take them out of the data",
    "promptsDiffer": "give both answers of a pair the same prompt",
}
"""Of rows that are left out because they repeat others nothing needs to be done."""


def advice(evaluation: Evaluation, manifest: AdapterManifest) -> list[str]:
    """Sentences in the order of their weight; never empty."""
    config = config_of(manifest)
    found = [
        *_gate(evaluation),
        *_overfitting(evaluation, manifest),
        *_forgetting(evaluation),
        *_quality(by_direction(evaluation), evaluation),
        *_more_rows(evaluation),
        *_learnt_little(evaluation, manifest),
        *_bias(evaluation.bias),
        *_folds(evaluation),
        *_data(manifest),
        *_sensitive(config, manifest),
    ]
    return found or ["Nothing stands out. Try the adapter on prompts of your own before people rely on it."]


def _gate(evaluation: Evaluation) -> Iterator[str]:
    failed = [one_line(check.rule, 200) for check in evaluation.gate if not check.passed]
    if failed:
        yield f"Do not deploy this adapter: it breaks {plural(len(failed), 'rule')} of the gate ({'; '.join(failed)})."


def _overfitting(evaluation: Evaluation, manifest: AdapterManifest) -> Iterator[str]:
    found = evaluation.overfitting
    if found.verdict == "overfitting":
        yield _train_shorter(found.best_step, manifest)
    elif not manifest.dataset.validation and not evaluation.cross_validation:
        yield "Set rows aside (dataset.validation.fraction: 0.05): without them nothing says how it does on new rows."
    elif _still_falling(evaluation) and not _trained_too_hard(evaluation):
        yield "The validation loss was still falling at the end: train longer (training.epochs or training.maxSteps)."


def _train_shorter(best: int | None, manifest: AdapterManifest) -> str:
    steps = int(manifest.metrics.get("steps", 0))
    where = f"to about step {best:,}" + (f" of {steps:,}" if steps else "") if best else "for fewer epochs"
    field = f"training.maxSteps: {best}" if best else "training.epochs"
    return (
        f"Train only {where} ({field}), or hold the model back: a lower training.learningRate or "
        "training.lora.rank, some training.lora.dropout. More varied rows help most."
    )


def _still_falling(evaluation: Evaluation) -> bool:
    losses = [point.loss for point in evaluation.validation_losses]
    return len(losses) > 2 and losses[-1] < _STILL * losses[-2] and losses[-2] < _STILL * losses[-3]


def _trained_too_hard(evaluation: Evaluation) -> bool:
    """Whether other advice is to train less; then none may be to train more."""
    losses = [point.loss for point in evaluation.validation_losses]
    risen = bool(losses) and losses[-1] > _RISEN * min(losses)
    return risen or evaluation.overfitting.verdict == "overfitting" or forgets(evaluation.overfitting.forgetting)


def _forgetting(evaluation: Evaluation) -> Iterator[str]:
    if forgets(evaluation.overfitting.forgetting):
        yield (
            "It forgot some of what the base model knew of general text: mix general rows into the data, or lower "
            "training.learningRate."
        )


def _quality(found: dict[Direction, list[str]], evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.measures:
        what = "only folds were" if evaluation.cross_validation else "nothing was"
        yield f"Compare its answers with the base model's yourself before it is used: {what} measured."
    if found["worse"]:
        yield f"Find out what got worse ({', '.join(found['worse'])}) in the samples before the adapter is used."


def _unclear_for_few_rows(evaluation: Evaluation) -> list[Measure]:
    unclear = [each for each in evaluation.measures if direction(each) in ("unclear", "few")]
    return [each for each in unclear if each.tuned.samples < _FEW_ROWS]


def _more_rows(evaluation: Evaluation) -> Iterator[str]:
    measures = _unclear_for_few_rows(evaluation)
    if measures:
        names = ", ".join(one_line(measure_name(each.name), 60) for each in measures)
        counts = sorted({each.tuned.samples for each in measures})
        had = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        yield (
            f"Measure on more rows (dataset.validation): {names} had only {had}, too few to tell a change from chance."
        )


def _learnt_little(evaluation: Evaluation, manifest: AdapterManifest) -> Iterator[str]:
    found = by_direction(evaluation)
    overfitted = evaluation.overfitting.verdict == "overfitting"  # which has advice of its own
    if overfitted or not found["unclear"] or found["better"] or found["worse"] or _unclear_for_few_rows(evaluation):
        return
    rows = f"add rows to the {manifest.dataset.kept:,}"
    if _trained_too_hard(evaluation):
        yield f"It learnt little that can be measured: {rows}."
    else:
        harder = "train longer, raise training.learningRate or training.lora.rank"
        yield f"It learnt little that can be measured: {harder}, or {rows}."


def _bias(bias: Bias | None) -> Iterator[str]:
    for category in sorted({each.category for each in bias.findings if each.flagged} if bias else []):
        groups = bias.representation.get(category, {}) if bias else {}
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(groups.items()))
        yield (
            f"Look at the rows that name {category}" + (f" ({counts})" if counts else "") + ": balance them, or write "
            "counterparts of them, and train again. Do not let the adapter decide about people."
        )


def _folds(evaluation: Evaluation) -> Iterator[str]:
    found = evaluation.cross_validation
    if found and found.mean and found.deviation > 0.1 * abs(found.mean):
        spread = share(found.deviation, abs(found.mean))
        yield f"What it learns depends on which rows it sees (folds differ by {spread}): add rows before you trust it."


def _data(manifest: AdapterManifest) -> Iterator[str]:
    report = manifest.dataset
    for reason, count in sorted(report.rejected.items(), key=lambda each: -each[1]):
        if reason in _REMEDIES and count > _MANY_LEFT_OUT * report.rows:
            part = share(count, report.rows)
            yield f"{plural(count, 'row')} ({part}) were left out as {reason}: {_REMEDIES[reason]}."
    if report.truncated > _MANY_LEFT_OUT * report.kept:
        part = share(report.truncated, report.kept)
        yield f"{plural(report.truncated, 'row')} ({part}) were cut short: raise model.maxLength."


def _sensitive(config: TrainerConfig, manifest: AdapterManifest) -> Iterator[str]:
    redacted = {str(kind) for kind in config.dataset.preparation.redact}
    left = [kind for kind, count in manifest.dataset.sensitive.items() if count and kind not in redacted]
    if left:
        yield (
            f"The model may repeat personal data or secrets that it learnt ({', '.join(left)}): set "
            f"dataset.preparation.redact: [{', '.join(left)}] unless they are meant."
        )
