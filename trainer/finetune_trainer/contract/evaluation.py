"""Evaluation section of `TrainerConfig`: how the fine-tuned model is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract.base import Model, Uri, cel_rules, s3_uri_rule, uri_text_rule
from finetune_trainer.contract.dataset import DataSource
from finetune_trainer.contract.graders import MAX_GRADERS, Endpoint, Grader

Task = Literal["chat", "classification", "summarization", "translation", "generation"]
SamplePrompt = Annotated[
    str, StringConstraints(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$", min_length=1, max_length=1000)
]
TermPair = Annotated[
    list[Annotated[str, StringConstraints(pattern=r"^[\p{L}\p{N}][\p{L}\p{N} '-]*$", min_length=1, max_length=40)]],
    Field(min_length=2, max_length=2),
]
METRICS_BY_TASK: dict[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "macroF1"),
    "summarization": ("rouge1", "rouge2", "rougeL"),
    "translation": ("bleu", "chrf"),
    "chat": ("exactMatch", "chrf"),
    "generation": ("exactMatch", "chrf"),
}
"""The metrics of the answers to validation rows. Higher values are better."""
MetricName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]+$", min_length=1, max_length=64)]
ResultDigest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
"""Digest of the `manifest.json` of a result."""


class GateRule(Model):
    """GateRule is a requirement on a metric that must be met before the result is published."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                "has(self.minimum) || has(self.maximum) || has(self.minImprovement)",
                "at least one of minimum, maximum and minImprovement must be set",
            ),
            (
                "self.metric != 'crossValidationLoss' || !has(self.minImprovement)",
                "minImprovement does not apply to crossValidationLoss, which is not measured for the base model",
            ),
        )
    )

    metric: MetricName
    """metric is the name of a metric that `evaluation.task` measures, of a grader, or `evalLoss`, `perplexity` or
    `crossValidationLoss`, or with `evaluation.test` also `testLoss`, `testAccuracy` and so on."""
    minimum: float | None = None
    """minimum is the lowest value that passes."""
    maximum: float | None = None
    """maximum is the highest value that passes."""
    min_improvement: float | None = None
    """minImprovement is the minimum improvement over the base model on the same rows; 0 means not worse. Lower values
    are better for losses, higher values for all other metrics."""


class BiasEvaluation(Model):
    """BiasEvaluation configures the check whether fine-tuning made the model treat groups of people differently."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            s3_uri_rule("pairsURI", is_optional=True),
            uri_text_rule("pairsURI", is_optional=True),
            (
                "!has(self.pairsURI) || (!self.pairsURI.contains('/../') && !self.pairsURI.contains('*') "
                "&& bytes(self.pairsURI).size() <= 1024)",
                "pairsURI must not contain '..' or wildcards and must not be longer than 1024 bytes",
            ),
        )
    )

    terms: list[TermPair] = Field(default=[], max_length=32)
    """terms are additional pairs of terms to swap in the validation rows, such as `[nurse, doctor]`. The built-in terms
    for gender, age, race and religion are always used (English, some French)."""
    pairs_uri: Uri | None = Field(default=None, alias="pairsURI")
    """pairsURI is the S3 URI of a CSV file with sentence pairs in the format of CrowS-Pairs (`sent_more`, `sent_less`,
    `stereo_antistereo`, `bias_type`). It replaces the built-in pairs."""


class Baseline(Model):
    """Baseline is an adapter that the fine-tuned model is compared with, besides the base model."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            s3_uri_rule("adapterURI"),
            uri_text_rule("adapterURI"),
            (
                "!self.adapterURI.contains('/../') && !self.adapterURI.endsWith('/..') "
                "&& !self.adapterURI.contains('*') && bytes(self.adapterURI).size() <= 1024",
                "adapterURI must not contain '..' or wildcards and must not be longer than 1024 bytes",
            ),
        )
    )

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=32)]
    """name is the name of the baseline in the results."""
    adapter_uri: Uri = Field(alias="adapterURI")
    """adapterURI is the S3 prefix of a LoRA adapter of the same base model, such as the `output.uri` of an earlier
    run."""
    digest: ResultDigest | None = None
    """digest is the `status.result.digest` of the run that published the adapter. The run fails if the adapter at
    `adapterURI` has another one. If unset, any adapter is accepted."""


class HeldOutTest(Model):
    """HeldOutTest is data that neither the training nor the choice of a model has seen."""

    sources: list[DataSource] = Field(min_length=1, max_length=4)
    """sources are the locations of the test rows. Training and validation rows that also occur there are dropped and
    counted as `leaked`."""


class Evaluation(Model):
    """Evaluation configures how the fine-tuned model is compared with the base model before it is published."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                "self.graders.all(each, !has(each.weighted) || each.weighted.terms.all(term, "
                "self.graders.exists(other, other.name == term.grader && !has(other.weighted))))",
                "the terms of a weighted grader must be names of other graders that are not weighted",
            ),
            (
                "self.graders.all(each, (!has(each.judge) || self.endpoints.exists(endpoint, "
                "endpoint.name == each.judge.endpoint)) && (!has(each.http) || self.endpoints.exists(endpoint, "
                "endpoint.name == each.http.endpoint)))",
                "the endpoint of a grader must be the name of one of evaluation.endpoints",
            ),
        )
    )

    task: Task | None = None
    """task selects the metrics of generated answers to the validation and test rows. `classification`: accuracy,
    macro-F1, confusion matrix. `summarization`: ROUGE. `translation`: BLEU, chrF. `chat`, `generation`: chrF. It needs
    `dataset.validation` or `evaluation.test`, and method sft. If unset, no answers are generated; loss and perplexity
    are always measured."""
    max_samples: int = Field(default=200, ge=1, le=10_000)
    """maxSamples is the maximum number of validation rows, and of test rows, to generate answers for, evenly spaced
    over all rows. Defaults to 200."""
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    """maxNewTokens is the maximum length of a generated answer, in tokens. If the data has longer answers, it is raised
    to a quarter more than the longest of the evaluated rows, up to 1024, so that no right answer is cut. Answers that
    are cut are marked. Defaults to 128."""
    graders: list[Grader] = Field(
        default=[],
        max_length=MAX_GRADERS,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """graders say what a good answer is. Each scores the generated answers to the validation and test rows from 0 to 1;
    its mean is a metric of the grader's name, for the base model, the fine-tuned model and `baselines`. They need
    method sft with `dataset.validation` or `evaluation.test`, or method grpo or rloo, whose `training.rewards` name
    them. Defaults to none."""
    endpoints: Sequence[Endpoint] = Field(
        default=[],
        max_length=4,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """endpoints are the servers that graders of the kinds `judge` and `http` call. They are not a part of the run's
    identity: the same run can use another server. Defaults to none."""
    max_ungraded_fraction: float = Field(default=0.1, ge=0, le=1)
    """maxUngradedFraction is the fraction of the answers that a grader may leave without a score, because a field is
    missing or a call fails. Such answers do not count as 0; they are left out of the mean, and the report gives their
    number. Above it, the run fails with reason `GraderFailed` and keeps its checkpoint. Defaults to 0.1."""
    baselines: list[Baseline] = Field(
        default=[],
        max_length=4,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """baselines are adapters that are measured on the same rows as the base model and the fine-tuned model, to compare
    results over time."""
    test: HeldOutTest | None = None
    """test is data that the finished model is measured on once: the metrics `testLoss` and, with a task, `testAccuracy`
    and so on. Early stopping, a promotion and a sweep choose by the validation data, so their validation metrics are
    optimistic and those of the test data are not. It needs method sft. If unset, there is no test."""
    sample_prompts: list[SamplePrompt] = Field(default=[], max_length=16)
    """samplePrompts are prompts that the report shows with the answers of the base model and the fine-tuned model."""
    bias: BiasEvaluation | None = None
    """bias measures whether fine-tuning changed how the model treats groups of people; `{}` uses the built-in terms and
    sentence pairs. The metric `biasFlags` is the number of comparisons that became significantly worse. If unset, bias
    is not measured."""
    gate: list[GateRule] = Field(default=[], max_length=16)
    """gate lists requirements that the fine-tuned model must meet to be published. If one is not met, the run fails
    with reason `EvaluationGate`."""

    @property
    def scores_answers(self) -> bool:
        """Whether answers to held-out rows are generated and scored."""
        return self.task is not None or bool(self.graders)
