"""Whether what is asked of an evaluation can be measured on the data; known before any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, Task, TrainerConfig
from finetune_trainer.data.augment.counterfactual import why_not_terms
from finetune_trainer.data.chat_template import template_errors
from finetune_trainer.data.loss_masking import encode_prompt
from finetune_trainer.data.rows import SourceFile
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.bias.sentence_pairs import SentencePair, read_pairs
from finetune_trainer.evaluation.task_metrics import check_task, why_no_bleu

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune_trainer.data.preparation import PreparedData

_BY_METHOD = {"sft": ["evalLoss", "perplexity"], "dpo": ["evalLoss", "evalRewardAccuracy"], "kto": ["evalLoss"]}
_BY_TASK = {
    None: [],
    "classification": ["accuracy", "macroF1"],
    "summarization": ["rouge1", "rouge2", "rougeL"],
    "translation": ["bleu", "chrf"],
    "chat": ["exactMatch", "chrf"],
    "generation": ["exactMatch", "chrf"],
}


def metrics(config: TrainerConfig) -> list[str]:
    """Names of all that will be measured."""
    flags = ["biasFlags"] if config.evaluation.bias else []
    folds = ["crossValidationLoss"] if config.training.cross_validation else []
    return [*_BY_METHOD[config.training.method], *_BY_TASK[config.evaluation.task], *flags, *folds]


def check(config: TrainerConfig, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `CONFIG_INVALID` for what would end, or be missing, only after the training: a gate on what is not
    measured, a prompt that cannot be asked, terms without a counterpart, a task that the rows are not of."""
    _check_gate(config)
    for prompt in config.evaluation.sample_prompts:
        _check_prompt(prompt, tokenizer)
    why = config.evaluation.bias and why_not_terms(config.evaluation.bias.terms)
    if why:
        raise TrainerError(Reason.CONFIG_INVALID, why)
    if config.evaluation.task:
        _check_task(config, config.evaluation.task, prepared, tokenizer)


def _check_gate(config: TrainerConfig) -> None:
    known, rules = metrics(config), config.evaluation.gate
    unknown = [rule.metric for rule in rules if rule.metric not in known]
    if unknown:
        message = f"evaluation.gate names {', '.join(unknown)}; this run measures {', '.join(known)}"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    if any(rule.metric == "biasFlags" and rule.min_improvement is not None for rule in rules):
        why = "evaluation.gate: biasFlags compares both models itself, so minImprovement does not apply; set maximum"
        raise TrainerError(Reason.CONFIG_INVALID, why)


def _check_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        encode_prompt(tokenizer, prompt)
    except template_errors() as error:
        message = f"evaluation.samplePrompts: the model's chat template refuses {prompt[:60]!r}: {error}"
        raise TrainerError(Reason.CONFIG_INVALID, message) from error


def pairs(files: Sequence[SourceFile]) -> list[SentencePair]:
    """The sentence pairs of `evaluation.bias.pairsURI`. Raises `DATA_INVALID` with object and line."""
    return [pair for file in files for pair in read_pairs(file.path.read_bytes(), file.uri)]


def _check_task(config: TrainerConfig, task: Task, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase) -> None:
    from finetune_trainer.modeling.inference import questions

    most, sides = config.evaluation.max_samples, (prepared.validation, prepared.dataset)
    held_out, trained = (
        [] if side is None else [each.reference for each in questions(side, tokenizer, most)] for side in sides
    )
    # Of both sides: a few validation rows can well have as many labels.
    why = check_task(task, [*held_out, *trained])
    if why:
        raise TrainerError(Reason.CONFIG_INVALID, why)
    if any(rule.metric == "bleu" for rule in config.evaluation.gate) and (why := why_no_bleu(held_out)):
        raise TrainerError(Reason.CONFIG_INVALID, f"evaluation.gate names bleu, which cannot be measured: {why}")
