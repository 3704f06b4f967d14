"""Evaluation results of a run, published as `evaluation.json`. The report and the model card show them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal, Self

from pydantic import Field

from finetune_trainer.contract import Model, Task


class Estimate(Model):
    """A number measured on a sample of rows, with its 95 % confidence interval. If there are too few rows, there is no
    interval."""

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


class Sample(Model):
    """One prompt with the answers of the base model and the fine-tuned model."""

    prompt: str
    reference: str | None = None
    """Reference answer from the data."""
    base: str
    tuned: str


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
    forgetting: Measure | None = None
    """Perplexity of general text that is unrelated to the training data, to detect catastrophic forgetting."""


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


class EvaluationReport(Model):
    """All evaluation results of a run. `missing` lists what could not be computed, and why."""

    task: Task | None = None
    measures: list[Measure] = Field(default=[])
    confusion: ConfusionMatrix | None = None
    samples: list[Sample] = Field(default=[])
    training_losses: list[LossPoint] = Field(default=[])
    validation_losses: list[LossPoint] = Field(default=[])
    overfitting: OverfittingResult
    bias: BiasResult | None = None
    cross_validation: CrossValidationResult | None = None
    gate: list[GateCheck] = Field(default=[])
    examples: list[RejectedRow] = Field(default=[])
    lengths: list[LengthBin] = Field(default=[])
    energy: EnergyUse = EnergyUse()
    preflight: list[PreflightFinding] = Field(default=[])
    """Results of the checks before the first step."""
    missing: list[str] = Field(default=[])

    def explain_too_few_rows(self) -> str | None:
        """Return a message if there are too few validation rows for confidence intervals, otherwise None."""
        # The losses of dpo and kto are not paired by row, so they never have an interval.
        changes = [measure.change for measure in self.measures if measure.change]
        row_counts = [change.samples for change in changes if change.low is None]
        if not row_counts:
            return None
        return f"{min(row_counts)} validation rows are too few for intervals: a change may be due to chance"

    def flatten_metrics(self) -> dict[str, float]:
        """Return the measures as plain numbers: `accuracy`, `baseAccuracy`, …"""
        metrics: dict[str, float] = {}
        for measure in self.measures:
            metrics[measure.name] = measure.tuned.value
            if measure.base:
                metrics["base" + measure.name[0].upper() + measure.name[1:]] = measure.base.value
        return metrics
