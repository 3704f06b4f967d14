"""Checks of the rendered rows: removed words, control tokens in the texts, and the date that the template writes."""

from __future__ import annotations

from datetime import date

from finetune_trainer.data.rewritten_text import RewrittenRows
from finetune_trainer.data.row_counter import RowCounter
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.state import TrainerInputs


def check_answers(inputs: TrainerInputs) -> list[PreflightFinding]:
    """Return findings about the rows that the chat template rewrites, control tokens in texts, and a written date.

    The data preparation has already ended the run if the template rewrites more rows than
    `dataset.preparation.maxRewrittenFraction`.
    """
    findings = [_describe_rewritten_rows(inputs)] if inputs.prepared.rewritten.rows else []
    if inputs.prepared.control_tokens.count:
        is_encoded_as_text = inputs.config.dataset.preparation.control_tokens == "text"
        describe = _describe_encoded_tokens if is_encoded_as_text else _describe_control_tokens
        findings.append(describe(inputs.prepared.control_tokens))
    if inputs.prepared.template_date is not None:
        findings.append(_describe_date(inputs.prepared.template_date))
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


def _describe_encoded_tokens(found: RowCounter) -> PreflightFinding:
    return PreflightFinding(
        check="controlTokens",
        status="passed",
        message=f'{found.share}: texts contain control tokens, such as "{found.example}" in {found.where}, which are '
        "encoded as ordinary text",
        value=found.count / found.rows,
    )


def _describe_control_tokens(found: RowCounter) -> PreflightFinding:
    return PreflightFinding(
        check="controlTokens",
        status="warning",
        message=f'{found.share}: texts contain control tokens, such as "{found.example}" in {found.where}, which can '
        "end a turn or begin another one in the middle of a text; remove them from the data, or set "
        "dataset.preparation.controlTokens to text",
        value=found.count / found.rows,
        expected=0,
    )


def _describe_date(template_date: date) -> PreflightFinding:
    return PreflightFinding(
        check="chatTemplate",
        status="passed",
        message=f"the chat template can write the current date; rows and prompts then have {template_date}, so that "
        "all attempts of the run train the same tokens",
    )
