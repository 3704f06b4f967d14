"""Whether what is asked of an evaluation can be measured on the data; known before any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data.labels import encode_prompt
from finetune_trainer.data.rows import SourceFile
from finetune_trainer.data.swaps import why_not_terms
from finetune_trainer.data.templates import template_errors
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.pairs import SentencePair, read_pairs
from finetune_trainer.evaluation.task_metrics import check_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune_trainer.data.preparing import PreparedData

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
    known = metrics(config)
    unknown = [rule.metric for rule in config.evaluation.gate if rule.metric not in known]
    if unknown:
        message = f"evaluation.gate names {', '.join(unknown)}; this run measures {', '.join(known)}"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    for prompt in config.evaluation.sample_prompts:
        _check_prompt(prompt, tokenizer)
    why = config.evaluation.bias and why_not_terms(config.evaluation.bias.terms)
    if why:
        raise TrainerError(Reason.CONFIG_INVALID, why)
    if config.evaluation.task:
        why = check_task(config.evaluation.task, _references(config, prepared, tokenizer))
        if why:
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


def _references(config: TrainerConfig, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    """Of both sides: a few validation rows can well have as many labels."""
    from finetune_trainer.models.answering import questions

    sides = [side for side in (prepared.validation, prepared.dataset) if side is not None]
    most = config.evaluation.max_samples
    return [each.reference for side in sides for each in questions(side, tokenizer, most)]
