"""Checks before training that the requested evaluation can be measured on the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from finetune_trainer.contract import METRICS_BY_TASK, Reason, Task, TrainerConfig
from finetune_trainer.data.augment.counterfactual import explain_invalid_terms
from finetune_trainer.data.chat_template import template_errors
from finetune_trainer.data.loss_masking import encode_prompt
from finetune_trainer.data.row_types import SourceFile
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.bias.sentence_pairs import SentencePair, parse_pairs
from finetune_trainer.evaluation.grader_preview import check_graders
from finetune_trainer.evaluation.task_metrics import explain_no_bleu, find_task_problem
from finetune_trainer.training.methods import get_method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune_trainer.data.preparation import PreparedData


def get_test_metric(name: str) -> str:
    """Return the name of a metric that is measured on the rows of `evaluation.test`: `testLoss`, `testAccuracy`, …"""
    return "testLoss" if name == "evalLoss" else f"test{name[0].upper()}{name[1:]}"


def list_metrics(config: TrainerConfig) -> list[str]:
    """Return the names of all metrics that the evaluation measures."""
    task_metrics = METRICS_BY_TASK[config.evaluation.task] if config.evaluation.task else ()
    answer_metrics = [*task_metrics, *(grader.name for grader in config.evaluation.graders)]
    test_metrics = [*map(get_test_metric, ["evalLoss", *answer_metrics])] if config.evaluation.test else []
    bias_metrics = ["biasFlags"] if config.evaluation.bias else []
    fold_metrics = ["crossValidationLoss"] if config.training.cross_validation else []
    return [
        *get_method(config).metrics,
        *answer_metrics,
        *test_metrics,
        *bias_metrics,
        *fold_metrics,
    ]


def check_requirements(config: TrainerConfig, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `CONFIG_INVALID` for problems that would otherwise show after the training: a gate on a metric that is not
    measured, an invalid prompt, terms without a counterpart, or rows that do not match the task. Raises `DATA_INVALID`
    if graders cannot score the answers of the data."""
    _check_gate(config)
    for prompt in config.evaluation.sample_prompts:
        _check_prompt(prompt, tokenizer)
    problem = config.evaluation.bias and explain_invalid_terms(config.evaluation.bias.terms)
    if problem:
        raise TrainerError(Reason.CONFIG_INVALID, problem)
    if config.evaluation.task:
        _check_task(config, config.evaluation.task, prepared)
    check_graders(config, prepared)


def _check_gate(config: TrainerConfig) -> None:
    measured, rules = list_metrics(config), config.evaluation.gate
    unknown = [rule.metric for rule in rules if rule.metric not in measured]
    if unknown:
        message = f"evaluation.gate names {', '.join(unknown)}, but this run measures only {', '.join(measured)}"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    if any(rule.metric == "biasFlags" and rule.min_improvement is not None for rule in rules):
        problem = (
            "evaluation.gate: biasFlags already compares both models, so minImprovement does not apply; set maximum"
        )
        raise TrainerError(Reason.CONFIG_INVALID, problem)


def _check_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        encode_prompt(tokenizer, prompt)
    except template_errors() as error:
        message = f"evaluation.samplePrompts: the chat template rejects {prompt[:60]!r}: {error}"
        raise TrainerError(Reason.CONFIG_INVALID, message) from error


def read_sentence_pairs(files: Sequence[SourceFile]) -> list[SentencePair]:
    """Return the sentence pairs of `evaluation.bias.pairsURI`. Raises `DATA_INVALID` with object and line."""
    return [pair for file in files for pair in parse_pairs(file.path.read_bytes(), file.uri)]


def _check_task(config: TrainerConfig, task: Task, prepared: PreparedData) -> None:
    from finetune_trainer.evaluation.prompts import list_references

    max_rows = config.evaluation.max_samples
    validation_references, test_references, training_references = (
        [] if texts is None else list_references(texts, max_rows)
        for texts in (prepared.validation_texts, prepared.test_texts, prepared.texts)
    )
    # Of all splits: a few validation rows may each have a label of their own.
    problem = find_task_problem(task, [*validation_references, *test_references, *training_references])
    if problem:
        raise TrainerError(Reason.CONFIG_INVALID, problem)
    _check_bleu(config, {"bleu": validation_references, "testBleu": test_references})


def _check_bleu(config: TrainerConfig, references_by_metric: Mapping[str, Sequence[str]]) -> None:
    gated = {rule.metric for rule in config.evaluation.gate}
    for metric, references in references_by_metric.items():
        if metric in gated and (problem := explain_no_bleu(references)):
            message = f"evaluation.gate names {metric}, which cannot be measured: {problem}"
            raise TrainerError(Reason.CONFIG_INVALID, message)
