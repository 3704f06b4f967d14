"""Verdicts in words: whether the model improved, and whether it overfits, is biased, fails the gate or has warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finetune_trainer.evaluation.decisions import ChangeDirection, change_direction
from finetune_trainer.evaluation.exact_tests import MIN_TEST_SAMPLES
from finetune_trainer.formatting import pluralize
from finetune_trainer.records.evaluation import EvaluationReport, GateCheck, Measure, PreflightFinding
from finetune_trainer.reporting.formatting import display_name
from finetune_trainer.text import to_one_line

Tone = Literal["good", "bad", "unsure"]
_LOSSES = ("evalLoss", "perplexity", "testLoss")
"""Metrics that do not need answers."""
_BIAS_FLAGS = "biasFlags"
"""A metric that compares both models itself. It has a verdict of its own."""


@dataclass(frozen=True)
class Verdict:
    """Verdict on one aspect, with an optional detail."""

    label: str
    tone: Tone
    text: str
    detail: str = ""


def list_judged_measures(evaluation: EvaluationReport) -> list[Measure]:
    """Return the measures that the quality is judged by: those of the validation rows or, without any, of the test
    rows."""
    validation_measures = [measure for measure in evaluation.measures if measure.name != _BIAS_FLAGS]
    return validation_measures or evaluation.test_measures or []


def group_by_direction(evaluation: EvaluationReport) -> dict[ChangeDirection, list[str]]:
    """Return the names of the metrics that the quality is judged by, by the direction of their change."""
    return group_measures(list_judged_measures(evaluation))


def group_measures(measures: Sequence[Measure]) -> dict[ChangeDirection, list[str]]:
    """Return the names of metrics by the direction of their change."""
    names_by_direction: dict[ChangeDirection, list[str]] = {
        "better": [],
        "worse": [],
        "unclear": [],
        "few": [],
        "unknown": [],
    }
    for measure in measures:
        names_by_direction[change_direction(measure)].append(to_one_line(display_name(measure.name), 60))
    return names_by_direction


def quality_verdict(evaluation: EvaluationReport) -> Verdict:
    """Return whether the model is better than the base model, with the names of the metrics as detail."""
    names_by_direction = group_by_direction(evaluation)
    if not any(names_by_direction.values()):
        coverage = "Only cross-validation was run." if evaluation.cross_validation else "There are no validation rows."
        return _mark_rejected(evaluation, Verdict("Quality", "unsure", "Not compared with the base model", coverage))
    tone, text = _judge_quality(evaluation, names_by_direction)
    return _mark_rejected(evaluation, Verdict("Quality", tone, text, describe_directions(names_by_direction)))


def describe_directions(names_by_direction: Mapping[ChangeDirection, Sequence[str]]) -> str:
    """Return the names of the metrics of each direction in sentences."""
    descriptions = {
        "better": "Better",
        "worse": "Worse",
        "unclear": "No clear change",
        "few": f"Measured on fewer than {MIN_TEST_SAMPLES} rows",
        "unknown": "Measured without a test of the change",
    }
    sentences = [
        f"{descriptions[direction]}: {', '.join(names)}." for direction, names in names_by_direction.items() if names
    ]
    return " ".join(sentences)


def _mark_rejected(evaluation: EvaluationReport, verdict: Verdict) -> Verdict:
    """Say first that the model was not published, if it fails the gate."""
    if not _failed_checks(evaluation):
        return verdict
    return replace(verdict, tone="bad", text=f"Not published: {verdict.text[0].lower()}{verdict.text[1:]}")


def _judge_quality(
    evaluation: EvaluationReport, names_by_direction: dict[ChangeDirection, list[str]]
) -> tuple[Tone, str]:
    if names_by_direction["better"] and names_by_direction["worse"]:
        return "unsure", "Better in some ways than the base model, worse in others"
    if names_by_direction["worse"]:
        return "bad", "Worse than the base model"
    if names_by_direction["better"]:
        return _judge_answers(evaluation)
    if names_by_direction["unclear"]:
        return "unsure", "No clear difference from the base model"
    if names_by_direction["few"]:
        return "unsure", "Too few rows for a comparison with the base model"
    return "unsure", "Measured, but not tested against the base model"


def _judge_answers(evaluation: EvaluationReport) -> tuple[Tone, str]:
    """Judge a model that is better by some metrics and worse by none: a lower loss alone does not make the answers
    better, which the metrics of a task measure."""
    answer_measures = [measure for measure in list_judged_measures(evaluation) if measure.name not in _LOSSES]
    directions = {change_direction(measure) for measure in answer_measures} - {"unknown"}
    if directions and "better" not in directions:
        return "unsure", "Lower loss than the base model, but no clearly better answers"
    return "good", "Better than the base model"


def _failed_checks(evaluation: EvaluationReport) -> list[GateCheck]:
    return [check for check in evaluation.gate if not check.passed]


def overfitting_verdict(evaluation: EvaluationReport) -> Verdict:
    """Return whether the model memorized its training data."""
    tones: dict[str, tuple[Tone, str]] = {
        "none": ("good", "No overfitting found"),
        "overfitting": ("bad", "Overfitted"),
        "unknown": ("unsure", "Overfitting not measured"),
    }
    tone, text = tones[evaluation.overfitting.verdict]
    return Verdict("Overfitting", tone, text, evaluation.overfitting.message)


def forgetting_verdict(evaluation: EvaluationReport) -> Verdict | None:
    """Return whether the model forgot what the base model knew, or None if the method does not measure it."""
    forgetting = evaluation.forgetting
    if forgetting is None:
        return None
    tones: dict[str, tuple[Tone, str]] = {
        "none": ("good", "No forgetting found"),
        "forgetting": ("bad", "The model forgets"),
        "unknown": ("unsure", "Forgetting not measured"),
    }
    tone, text = tones[forgetting.verdict]
    return Verdict("Forgetting", tone, text, forgetting.message)


def bias_verdict(evaluation: EvaluationReport) -> Verdict:
    """Return whether the fine-tuning increased the differences between groups of people."""
    if evaluation.bias is None or not evaluation.bias.findings:
        return Verdict("Bias", "unsure", "Bias not measured", _explain_no_bias(evaluation))
    findings = evaluation.bias.findings
    flagged = [finding for finding in findings if finding.flagged]
    comparisons = pluralize(len(findings), "comparison")
    if flagged:
        names = ", ".join(sorted({to_one_line(finding.category, 60) for finding in flagged}))
        return Verdict("Bias", "bad", f"Bias increased: {names}", f"{len(flagged)} of {comparisons} got worse.")
    return Verdict("Bias", "good", "No increase in bias found", f"None of {comparisons} got worse beyond chance.")


def _explain_no_bias(evaluation: EvaluationReport) -> str:
    return "Set evaluation.bias to measure it." if evaluation.bias is None else "There was too little to compare."


def gate_verdict(evaluation: EvaluationReport) -> Verdict:
    """Return whether the model passed the gate."""
    if not evaluation.gate:
        return Verdict("Gate", "unsure", "No gate configured", "The adapter is published whatever its metrics are.")
    failed = _failed_checks(evaluation)
    if failed:
        return Verdict(
            "Gate", "bad", "Gate failed", f"{len(failed)} of {pluralize(len(evaluation.gate), 'rule')} failed."
        )
    return Verdict("Gate", "good", "Gate passed", f"{pluralize(len(evaluation.gate), 'rule')} passed.")


def list_preflight_warnings(evaluation: EvaluationReport) -> list[PreflightFinding]:
    """Return the preflight checks that ended with a warning."""
    return [finding for finding in evaluation.preflight if finding.status == "warning"]


def preflight_verdict(evaluation: EvaluationReport) -> Verdict | None:
    """Return the warnings of the preflight checks with their messages, or None if there are none."""
    warnings = list_preflight_warnings(evaluation)
    if not warnings:
        return None
    text = pluralize(len(warnings), "warning before the training", "warnings before the training")
    messages = "; ".join(to_one_line(finding.message, 400) for finding in warnings)
    return Verdict("Preflight", "unsure", text, f"{messages}.")


def trust_verdicts(evaluation: EvaluationReport) -> list[Verdict]:
    """Return the verdicts on overfitting, forgetting, bias, the gate and, with warnings, the preflight checks."""
    verdicts = [
        overfitting_verdict(evaluation),
        forgetting_verdict(evaluation),
        bias_verdict(evaluation),
        gate_verdict(evaluation),
        preflight_verdict(evaluation),
    ]
    return [verdict for verdict in verdicts if verdict]


def describe_limits(evaluation: EvaluationReport) -> str:
    """Say what the metrics of the task do not judge. Empty if there is nothing to say."""
    if evaluation.task in (None, "classification"):
        return ""
    return (
        "The metrics of answers compare their wording with that of the data. They do not judge whether the facts in an "
        "answer are right: read the samples."
    )
