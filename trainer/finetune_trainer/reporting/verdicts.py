"""What the numbers come to: better, worse or not to be told; and whether that is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_trainer.evaluation.intervals import MIN_SAMPLES
from finetune_trainer.formatting import pluralize
from finetune_trainer.records.evaluation import EvaluationReport, GateCheck, Measure
from finetune_trainer.reporting.formatting import display_name
from finetune_trainer.text import to_one_line

ChangeDirection = Literal["better", "worse", "unclear", "few", "unknown"]
Tone = Literal["good", "bad", "unsure"]


@dataclass(frozen=True)
class Verdict:
    """A judgement in few words."""

    label: str
    tone: Tone
    text: str
    detail: str = ""


def change_direction(measure: Measure) -> ChangeDirection:
    """Which way the metric went; `unclear` unless the whole interval of the change lies on one side of zero, and `few`
    where there are too few rows for an interval."""
    change = measure.change
    if change is None:
        return "unknown"
    if change.low is None or change.high is None:
        return "few"
    if change.low <= 0 <= change.high:
        return "unclear"
    return "better" if (change.low > 0) == measure.higher_is_better else "worse"


def group_by_direction(evaluation: EvaluationReport) -> dict[ChangeDirection, list[str]]:
    """Names of the metrics that went each way."""
    names_by_direction: dict[ChangeDirection, list[str]] = {
        "better": [],
        "worse": [],
        "unclear": [],
        "few": [],
        "unknown": [],
    }
    for measure in evaluation.measures:
        names_by_direction[change_direction(measure)].append(to_one_line(display_name(measure.name), 60))
    return names_by_direction


def quality_verdict(evaluation: EvaluationReport) -> Verdict:
    """Did it get better? In one line, with the names of the metrics below it."""
    if evaluation.cross_validation and not evaluation.measures:
        return Verdict("Quality", "unsure", "Not compared with the base model", "Cross-validation alone measured it.")
    names_by_direction = group_by_direction(evaluation)
    tone, text = _judge_quality(names_by_direction, bool(evaluation.measures))
    if _failed_checks(evaluation):
        tone, text = "bad", f"Not published: {text[0].lower()}{text[1:]}"
    descriptions = {
        "better": "Better", "worse": "Worse", "unclear": "No clear change",
        "few": f"Measured on fewer than {MIN_SAMPLES} rows", "unknown": "Not compared",
    }  # fmt: skip
    detail = ". ".join(
        f"{descriptions[direction]}: {', '.join(names)}" for direction, names in names_by_direction.items() if names
    )
    return Verdict("Quality", tone, text, f"{detail}." if detail else "")


def _judge_quality(names_by_direction: dict[ChangeDirection, list[str]], has_measures: bool) -> tuple[Tone, str]:
    if not has_measures:
        return "unsure", "Nothing was measured"
    if names_by_direction["better"] and names_by_direction["worse"]:
        return "unsure", "Better in some ways than the base model, worse in others"
    if names_by_direction["worse"]:
        return "bad", "Worse than the base model"
    if names_by_direction["better"]:
        return "good", "Better than the base model"
    if names_by_direction["unclear"]:
        return "unsure", "No clear difference from the base model"
    if names_by_direction["few"]:
        return "unsure", "Too few rows to tell it from the base model"
    return "unsure", "Measured, but not compared with the base model"


def _failed_checks(evaluation: EvaluationReport) -> list[GateCheck]:
    return [check for check in evaluation.gate if not check.passed]


def overfitting_verdict(evaluation: EvaluationReport) -> Verdict:
    """Whether it learnt its rows by heart."""
    tones: dict[str, tuple[Tone, str]] = {
        "none": ("good", "No overfitting seen"),
        "overfitting": ("bad", "Overfitted"),
        "unknown": ("unsure", "Overfitting unknown"),
    }
    tone, text = tones[evaluation.overfitting.verdict]
    return Verdict("Overfitting", tone, text, evaluation.overfitting.message)


def bias_verdict(evaluation: EvaluationReport) -> Verdict:
    """Whether the tuning treats a group of people worse than the base model did."""
    if evaluation.bias is None or not evaluation.bias.findings:
        return Verdict("Bias", "unsure", "Bias not measured")
    findings = evaluation.bias.findings
    flagged = [finding for finding in findings if finding.flagged]
    comparisons = pluralize(len(findings), "comparison")
    if flagged:
        names = ", ".join(sorted({to_one_line(finding.category, 60) for finding in flagged}))
        return Verdict("Bias", "bad", f"More bias: {names}", f"{len(flagged)} of {comparisons} got worse.")
    return Verdict("Bias", "good", "No added bias seen", f"None of {comparisons} got worse beyond chance.")


def gate_verdict(evaluation: EvaluationReport) -> Verdict:
    """Whether it passed what was asked of it."""
    if not evaluation.gate:
        return Verdict("Gate", "unsure", "No gate was set")
    failed = _failed_checks(evaluation)
    if failed:
        return Verdict(
            "Gate", "bad", "Gate failed", f"{len(failed)} of {pluralize(len(evaluation.gate), 'rule')} broken."
        )
    return Verdict("Gate", "good", "Gate passed", f"{pluralize(len(evaluation.gate), 'rule')} kept.")


def trust_verdicts(evaluation: EvaluationReport) -> list[Verdict]:
    """All that speaks for or against the numbers."""
    return [overfitting_verdict(evaluation), bias_verdict(evaluation), gate_verdict(evaluation)]
