"""Builds the findings that several checks have in common."""

from __future__ import annotations

from finetune_trainer.records.evaluation import PreflightFinding


def build_comparison(check: str, subject: str, value: float, reference: str, expected: float) -> PreflightFinding:
    """Return the finding of a check that passed: `<subject> is <value>, <reference> <expected>`."""
    message = f"{subject} is {value:.6g}, {reference} {expected:.6g}"
    return PreflightFinding(check=check, status="passed", message=message, value=value, expected=expected)
