"""What the numbers come to: better, worse or not to be told; and whether that is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_trainer.evaluation.intervals import MIN_SAMPLES
from finetune_trainer.records.evaluation import Check, Evaluation, Measure
from finetune_trainer.reporting.formatting import measure_name, plural
from finetune_trainer.text import one_line

Direction = Literal["better", "worse", "unclear", "few", "unknown"]
Tone = Literal["good", "bad", "unsure"]


@dataclass(frozen=True)
class Verdict:
    """A judgement in few words."""

    label: str
    tone: Tone
    text: str
    detail: str = ""


def direction(measure: Measure) -> Direction:
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


def by_direction(evaluation: Evaluation) -> dict[Direction, list[str]]:
    """Names of the metrics that went each way."""
    found: dict[Direction, list[str]] = {"better": [], "worse": [], "unclear": [], "few": [], "unknown": []}
    for measure in evaluation.measures:
        found[direction(measure)].append(one_line(measure_name(measure.name), 60))
    return found


def quality(evaluation: Evaluation) -> Verdict:
    """Did it get better? In one line, with the names of the metrics below it."""
    if evaluation.cross_validation and not evaluation.measures:
        return Verdict("Quality", "unsure", "Not compared with the base model", "Cross-validation alone measured it.")
    found = by_direction(evaluation)
    tone, text = _quality(found, bool(evaluation.measures))
    if _broken(evaluation):
        tone, text = "bad", f"Not published: {text[0].lower()}{text[1:]}"
    words = {
        "better": "Better", "worse": "Worse", "unclear": "No clear change",
        "few": f"Measured on fewer than {MIN_SAMPLES} rows", "unknown": "Not compared",
    }  # fmt: skip
    detail = ". ".join(f"{words[way]}: {', '.join(names)}" for way, names in found.items() if names)
    return Verdict("Quality", tone, text, f"{detail}." if detail else "")


def _quality(found: dict[Direction, list[str]], measured: bool) -> tuple[Tone, str]:
    if not measured:
        return "unsure", "Nothing was measured"
    if found["better"] and found["worse"]:
        return "unsure", "Better in some ways than the base model, worse in others"
    if found["worse"]:
        return "bad", "Worse than the base model"
    if found["better"]:
        return "good", "Better than the base model"
    if found["unclear"]:
        return "unsure", "No clear difference from the base model"
    if found["few"]:
        return "unsure", "Too few rows to tell it from the base model"
    return "unsure", "Measured, but not compared with the base model"


def _broken(evaluation: Evaluation) -> list[Check]:
    return [check for check in evaluation.gate if not check.passed]


def overfitting(evaluation: Evaluation) -> Verdict:
    """Whether it learnt its rows by heart."""
    tones: dict[str, tuple[Tone, str]] = {
        "none": ("good", "No overfitting seen"),
        "overfitting": ("bad", "Overfitted"),
        "unknown": ("unsure", "Overfitting unknown"),
    }
    tone, text = tones[evaluation.overfitting.verdict]
    return Verdict("Overfitting", tone, text, evaluation.overfitting.message)


def bias(evaluation: Evaluation) -> Verdict:
    """Whether the tuning treats a group of people worse than the base model did."""
    if evaluation.bias is None or not evaluation.bias.findings:
        return Verdict("Bias", "unsure", "Bias not measured")
    findings = evaluation.bias.findings
    flagged = [finding for finding in findings if finding.flagged]
    compared = plural(len(findings), "comparison")
    if flagged:
        names = ", ".join(sorted({one_line(finding.category, 60) for finding in flagged}))
        return Verdict("Bias", "bad", f"More bias: {names}", f"{len(flagged)} of {compared} got worse.")
    return Verdict("Bias", "good", "No added bias seen", f"None of {compared} got worse beyond chance.")


def gate(evaluation: Evaluation) -> Verdict:
    """Whether it passed what was asked of it."""
    if not evaluation.gate:
        return Verdict("Gate", "unsure", "No gate was set")
    failed = _broken(evaluation)
    if failed:
        return Verdict("Gate", "bad", "Gate failed", f"{len(failed)} of {plural(len(evaluation.gate), 'rule')} broken.")
    return Verdict("Gate", "good", "Gate passed", f"{plural(len(evaluation.gate), 'rule')} kept.")


def trust(evaluation: Evaluation) -> list[Verdict]:
    """All that speaks for or against the numbers."""
    return [overfitting(evaluation), bias(evaluation), gate(evaluation)]
