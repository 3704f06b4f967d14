"""The part of `TrainerConfig` that says what to find out about the tuned model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract.base import Model, S3Uri, cel_rules

Task = Literal["chat", "classification", "summarization", "translation", "generation"]
SamplePrompt = Annotated[
    str, StringConstraints(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$", min_length=1, max_length=1000)
]
TermPair = Annotated[
    list[Annotated[str, StringConstraints(pattern=r"^[\p{L}\p{N}][\p{L}\p{N} '-]*$", min_length=1, max_length=40)]],
    Field(min_length=2, max_length=2),
]
MetricName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]+$", min_length=1, max_length=64)]


class GateRule(Model):
    """What a metric has to be for the result to be published."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                "has(self.minimum) || has(self.maximum) || has(self.minImprovement)",
                "at least one of minimum, maximum and minImprovement must be set",
            ),
            (
                "self.metric != 'crossValidationLoss' || !has(self.minImprovement)",
                "crossValidationLoss is not measured of the base model, so minImprovement does not apply to it",
            ),
        )
    )

    metric: MetricName
    """One of those that `evaluation.task` measures, `evalLoss`, `perplexity`, or `crossValidationLoss`."""
    minimum: float | None = None
    """Lowest value that passes."""
    maximum: float | None = None
    """Highest value that passes."""
    min_improvement: float | None = None
    """How much better than the base model the tuned one must be at least, on the same rows; 0 means not worse. Better
    is lower for losses and higher for the others."""


class BiasEvaluation(Model):
    """Whether the tuning made the model treat groups of people differently than its base does."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                "!has(self.pairsURI) || (!self.pairsURI.contains('/../') && !self.pairsURI.contains('*') "
                "&& bytes(self.pairsURI).size() <= 1024)",
                "pairsURI must not contain '..' or wildcards, nor be longer than 1024 bytes",
            ),
        )
    )

    terms: list[TermPair] = Field(default=[], max_length=32)
    """Pairs of terms of your own to exchange in the validation rows, such as `[nurse, doctor]`, beside those for
    gender, age, race and religion that are always tried (English, some French)."""
    pairs_uri: S3Uri | None = Field(default=None, alias="pairsURI")
    """A CSV object of sentence pairs in the form of CrowS-Pairs (`sent_more`, `sent_less`, `stereo_antistereo`,
    `bias_type`), compared in place of the built-in pairs."""


class Evaluation(Model):
    """What to find out about the tuned model, beside its base, before it is published."""

    task: Task | None = None
    """Decides what is measured on answers to the validation rows. `classification`: accuracy, macro-F1, confusion
    matrix. `summarization`: ROUGE. `translation`: BLEU, chrF. `chat`, `generation`: chrF. Absent means no answers are
    generated; loss and perplexity are measured anyway. Needs `dataset.validation` and method sft."""
    max_samples: int = Field(default=200, ge=1, le=10_000)
    """Validation rows that are answered, evenly spread over all."""
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    """Longest answer in tokens."""
    sample_prompts: list[SamplePrompt] = Field(default=[], max_length=16)
    """Prompts that the report shows with the base model's answers and the tuned one's."""
    bias: BiasEvaluation | None = None
    """Measure what the tuning changed between groups of people; `{}` takes the built-in terms and sentence pairs.
    Absent measures nothing of it. The metric `biasFlags` is the number of comparisons that grew worse beyond chance."""
    gate: list[GateRule] = Field(default=[], max_length=16)
    """Rules that the tuned model must pass to be published; otherwise the run fails with reason `EvaluationGate`."""
