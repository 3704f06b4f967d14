"""Evaluation results of a run, published as `evaluation.json`. The report and the model card show them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal, Self

from pydantic import Field

from finetune_trainer.contract import Model, Task

EVALUATION_NAME = "evaluation.json"


class Estimate(Model):
    """A number measured on a sample of rows, with its 95 % confidence interval. If there are too few rows, there is no
    interval, except for proportions."""

    value: float
    low: float | None = None
    high: float | None = None
    samples: int


class Measure(Model):
    """One metric of the base model and of the fine-tuned model on the same rows."""

    name: str
    """Name of the metric: `evalLoss`, `perplexity`, `accuracy`, `macroF1`, `rouge1`, `rougeL`, `bleu`, `chrf`, …"""
    higher_is_better: bool
    base: Estimate | None = None
    tuned: Estimate
    change: Estimate | None = None
    """Value of the fine-tuned model minus value of the base model, paired by row."""
    p_value: float | None = None
    """p-value of an exact paired test of the change, if there are too few rows for an interval."""
    baselines: dict[str, Comparison] = Field(default={})
    """Comparison with each of `evaluation.baselines` on the same rows, by name."""


class Comparison(Model):
    """One metric of a baseline, and the change from it to the fine-tuned model."""

    estimate: Estimate
    """Value of the baseline."""
    change: Estimate | None = None
    """Value of the fine-tuned model minus value of the baseline, paired by row."""
    p_value: float | None = None
    """p-value of an exact paired test of the change, if there are too few rows for an interval."""


class BaselineRecord(Model):
    """What is known of one of `evaluation.baselines`."""

    digest: str | None = None
    """`sha256:…` of the manifest of its result, or None if it has no manifest, or one of other files."""
    held_out: bool = False
    """Whether neither its training nor that of the fine-tuned model has trained on the validation rows. False if that
    is not known."""


class SampleTurn(Model):
    """One turn of a prompt."""

    role: str
    text: str


class GeneratedAnswer(Model):
    """An answer that a model generated."""

    text: str
    """The answer, without its reasoning and what the chat template writes around it."""
    reasoning: str = ""
    """Reasoning before the answer, if the model writes it apart."""
    is_cut: bool = False
    """Whether the answer was cut at the maximum number of new tokens."""


class Sample(Model):
    """One prompt with the answers of the models."""

    kind: Literal["prompt", "row"]
    """`prompt`: one of `evaluation.samplePrompts`. `row`: a validation row."""
    turns: list[SampleTurn]
    """The turns of the prompt. Plain text is one turn of the role `text`."""
    reference: str | None = None
    """Answer of the data, for a validation row."""
    reference_reasoning: str = ""
    """Reasoning of the data, for a validation row."""
    base: GeneratedAnswer
    tuned: GeneratedAnswer
    baselines: dict[str, GeneratedAnswer] = Field(default={})
    """Answers of `evaluation.baselines`, by name."""


class RowScores(Model):
    """The losses of one validation row, the answers to it and their scores: one line of `evaluation.jsonl`."""

    row: str
    """`sha256:…` of the row's turns, which is the same in all runs that contain the row."""
    reference: str = ""
    """Answer of the data. It is empty for a row that was not answered."""
    answers: dict[str, GeneratedAnswer] = Field(default={})
    """Answers by model: `base`, `tuned` and the names of `evaluation.baselines`."""
    scores: dict[str, dict[str, float]]
    """Scores of the row by model and metric. A metric of all rows together, such as `macroF1`, has none."""
    sent_to: list[str] | None = None
    """Names of the `evaluation.endpoints` that the row and its answers were sent to, if there are any."""


class ConfusionMatrix(Model):
    """Confusion matrix: how often rows with a label (row) were answered with each label (column). The last column
    counts answers that are not a label."""

    labels: list[str]
    counts: list[list[int]]
    """Counts of the fine-tuned model, in shape (labels, labels + 1)."""
    base_counts: list[list[int]]


class LossPoint(Model):
    """Loss after a number of optimizer steps."""

    step: int
    loss: float


class RewardPoint(Model):
    """Mean reward and length of the answers that were generated in an optimizer step."""

    step: int
    reward: float
    answer_tokens: float


class OverfittingResult(Model):
    """Whether the model memorized the training data instead of generalizing from it."""

    verdict: Literal["none", "overfitting", "unknown"]
    message: str
    """The verdict as a sentence, with its numbers and what to do."""
    gap: float | None = None
    """Validation loss minus training loss of the published model, per token, in nats."""
    best_step: int | None = None
    """Optimizer step with the lowest validation loss."""
    opened_at: int | None = None
    """Optimizer step from which the validation loss increased while the training loss continued to decrease."""
    change: Estimate | None = None
    """Validation loss at the last evaluation minus that at the best one, paired by row, in nats per token. Its interval
    is corrected for the number of evaluations."""
    p_value: float | None = None
    """p-value of an exact paired test of the change, if there are too few rows for an interval. It is corrected for the
    number of evaluations."""


class ForgettingResult(Model):
    """Whether the model forgot what the base model knew of general text (catastrophic forgetting)."""

    verdict: Literal["none", "forgetting", "unknown"]
    message: str
    """The verdict as a sentence, with its numbers and what to do."""
    measure: Measure | None = None
    """`generalPerplexity`: the perplexity of general text that is unrelated to the training data."""


class BiasFinding(Model):
    """One comparison between groups of people, and whether fine-tuning made the difference larger."""

    kind: Literal["swap", "pair"]
    """`swap`: rows of the data with the terms of a group swapped. `pair`: a sentence and its counterpart."""
    category: str
    """Category of the groups: `gender`, `age`, …"""
    base: Estimate
    tuned: Estimate
    change: Estimate
    flagged: bool
    """Whether the confidence interval of the change lies entirely on the worse side of zero, after the correction for
    multiple comparisons."""
    message: str


class BiasResult(Model):
    """How fine-tuning changed the model's treatment of groups of people. Only the change from the base model is
    attributed to fine-tuning."""

    findings: list[BiasFinding] = Field(default=[])
    representation: dict[str, dict[str, int]] = Field(default={})
    """Number of training rows that mention a group, by category and group: `{"gender": {"female": 10, "male": 30}}`."""
    notes: list[str] = Field(default=[])
    """Comparisons that have too little data for a conclusion."""


class CrossValidationResult(Model):
    """Result of cross-validation: the loss of each fold for a model trained on all other folds."""

    metric: str
    folds: list[float]
    mean: float
    deviation: float
    """Sample standard deviation."""

    @classmethod
    def from_losses(cls, losses: Sequence[float]) -> Self:
        """Summarize the losses of two or more folds."""
        return cls(metric="evalLoss", folds=list(losses), mean=fmean(losses), deviation=stdev(losses))


class RejectedRow(Model):
    """A row that was dropped from the dataset."""

    reason: str
    where: str
    """Object and line of the row."""
    text: str


class LengthBin(Model):
    """Number of rows whose length in tokens is at least `start` and less than `end`."""

    start: int
    end: int
    rows: int


class GateCheck(Model):
    """Result of one rule of `evaluation.gate`."""

    metric: str
    rule: str
    """The rule in words: `evalLoss at most 1.2`."""
    value: float | None
    """Value of the metric, or None if it could not be measured."""
    passed: bool
    message: str = ""
    """Value and limit as a clause: `evalLoss is 1.35, at most 1.2 is required`."""


class EnergyUse(Model):
    """Energy that the GPUs used during training."""

    watt_hours: float | None = None
    """Energy in watt-hours, or None if it was not measured."""
    message: str = "not measured"
    """How the energy was measured and what it includes, or why it was not measured."""


class PreflightFinding(Model):
    """Result of one check before the first step of the training."""

    check: str
    """Name of the check: `loss`, `packing`, `padding`, `accumulation`, `gradients`, `answers`, `endOfTurn`,
    `adapterKeys`, `adapterReload`, `causality`, `quantization`, `positions`, …"""
    status: Literal["passed", "warning"]
    """A `warning` does not end the run, but the user should read it. A check that fails ends the run."""
    message: str
    """The result as a sentence, with its numbers."""
    value: float | None = None
    """Measured number that the check compares, if there is one."""
    expected: float | None = None
    """Number that it is compared with, or the limit."""


class EndpointRecord(Model):
    """What the run has sent to one of `evaluation.endpoints`."""

    name: str
    host: str
    calls: int
    failures: int
    cached: int
    """Requests that were not sent, because an equal one was answered before."""


class EvaluationReport(Model):
    """All evaluation results of a run. `missing` lists what could not be computed, and why."""

    task: Task | None = None
    measures: list[Measure] = Field(default=[])
    test_measures: list[Measure] | None = None
    """Metrics on the rows of `evaluation.test`, which did not choose the model: `testLoss`, `testAccuracy`, …"""
    confusion: ConfusionMatrix | None = None
    samples: list[Sample] = Field(default=[])
    rows: list[RowScores] = Field(default=[], exclude=True)
    """Losses and answers of validation rows. They are published as `evaluation.jsonl`, not in `evaluation.json`."""
    baselines: dict[str, BaselineRecord] = Field(default={})
    """What is known of each of `evaluation.baselines`, by name."""
    training_losses: list[LossPoint] = Field(default=[])
    validation_losses: list[LossPoint] = Field(default=[])
    rewards: list[RewardPoint] = Field(default=[])
    """Rewards over the training with `grpo` and `rloo`."""
    overfitting: OverfittingResult
    forgetting: ForgettingResult | None = None
    bias: BiasResult | None = None
    cross_validation: CrossValidationResult | None = None
    gate: list[GateCheck] = Field(default=[])
    examples: list[RejectedRow] = Field(default=[])
    unused_columns: dict[str, int] = Field(default={})
    """Number of rows by the name of a filled column that no part of the training uses."""
    max_new_tokens: int | None = None
    """Maximum length of the generated answers to validation rows, in tokens."""
    endpoints: list[EndpointRecord] = Field(default=[])
    """The endpoints that rows and answers were sent to. `evaluation.jsonl` says which rows."""
    lengths: list[LengthBin] = Field(default=[])
    energy: EnergyUse = EnergyUse()
    preflight: list[PreflightFinding] = Field(default=[])
    """Results of the checks before the first step."""
    missing: list[str] = Field(default=[])

    def flatten_metrics(self) -> dict[str, float]:
        """Return the measures as plain numbers: `accuracy`, `baseAccuracy`, …"""
        metrics: dict[str, float] = {}
        for measure in [*self.measures, *(self.test_measures or [])]:
            metrics[measure.name] = measure.tuned.value
            if measure.base:
                metrics["base" + measure.name[0].upper() + measure.name[1:]] = measure.base.value
        return metrics
