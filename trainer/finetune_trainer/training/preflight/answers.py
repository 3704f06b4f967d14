"""Checks of the rendered rows: which words the chat template removes, and which date it writes."""

from __future__ import annotations

from finetune_trainer.data.chat_template import DATE_FUNCTION, format_rendering_date
from finetune_trainer.data.rewritten_text import RewrittenRows
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.state import TrainerInputs


def check_answers(inputs: TrainerInputs) -> list[PreflightFinding]:
    """Return a finding about the rows that the chat template rewrites, and one if it writes a date.

    The data preparation has already ended the run if the template rewrites more rows than
    `dataset.preparation.maxRewrittenFraction`.
    """
    findings = [_describe_rewritten_rows(inputs)] if inputs.prepared.rewritten.rows else []
    if DATE_FUNCTION in (inputs.loaded.tokenizer.chat_template or ""):
        findings.append(_DATE_FINDING)
    return findings


def _describe_rewritten_rows(inputs: TrainerInputs) -> PreflightFinding:
    rewritten: RewrittenRows = inputs.prepared.rewritten
    is_complete = rewritten.count == 0
    return PreflightFinding(
        check="answers",
        status="passed" if is_complete else "warning",
        message=f"all words of the answers in {rewritten.rows} rows are trained" if is_complete else rewritten.summary,
        value=rewritten.count / rewritten.rows,
        expected=inputs.config.dataset.preparation.max_rewritten_fraction,
    )


_DATE_FINDING = PreflightFinding(
    check="chatTemplate",
    status="passed",
    message="the chat template writes the current date; the rows have the date "
    f"{format_rendering_date('%d %B %Y')} instead, so that every run trains the same tokens",
)
