"""Checks of the rendered rows: removed words, control tokens in the texts, and the date that the template writes."""

from __future__ import annotations

from finetune_trainer.data.chat_template import DATE_FUNCTION, format_rendering_date
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


_DATE_FINDING = PreflightFinding(
    check="chatTemplate",
    status="passed",
    message="the chat template writes the current date; the rows have the date "
    f"{format_rendering_date('%d %B %Y')} instead, so that every run trains the same tokens",
)
