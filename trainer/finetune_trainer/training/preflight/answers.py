"""Checks of the rendered rows: which words the chat template removes, and whether it writes the current date."""

from __future__ import annotations

from finetune_trainer.data.rewritten_text import RewrittenRows
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.state import TrainerInputs

_DATE_FUNCTION = "strftime_now"
"""The function of transformers that formats the current date in a chat template, as in that of Llama 3."""


def check_answers(inputs: TrainerInputs) -> list[PreflightFinding]:
    """Return a finding about the rows that the chat template rewrites, and one if its text may depend on the date.

    The data preparation has already ended the run if the template rewrites more rows than
    `dataset.preparation.maxRewrittenFraction`.
    """
    findings = [_describe_rewritten_rows(inputs)] if inputs.prepared.rewritten.rows else []
    if _DATE_FUNCTION in (inputs.loaded.tokenizer.chat_template or ""):
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
    status="warning",
    message=f"the chat template can write the current date into each row ({_DATE_FUNCTION}), so a run on another day "
    "may train other tokens; set model.chatTemplate to a copy of the template with a fixed date to avoid this",
)
