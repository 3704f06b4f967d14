"""What is known of a model in the end. Published as `evaluation.json`; the report and the card show it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_trainer.contract import Model, Task


class Estimate(Model):
    """A number measured on some rows, with its 95 % interval; without one where the rows are too few."""

    value: float
    low: float | None = None
    high: float | None = None
    samples: int


class Measure(Model):
    """One metric, of the base model and of the tuned one, on the same rows."""

    name: str
    """`evalLoss`, `perplexity`, `accuracy`, `macroF1`, `rouge1`, `rougeL`, `bleu`, `chrf`, …"""
    higher_is_better: bool
    base: Estimate | None = None
    tuned: Estimate
    change: Estimate | None = None
    """Tuned minus base, row by row."""


class Sample(Model):
    """One prompt, answered by both."""

    prompt: str
    reference: str | None = None
    """The data's own answer."""
    base: str
    tuned: str


class ConfusionMatrix(Model):
    """How often a label (row) was answered by which (column); the last column is whatever is no label."""

    labels: list[str]
    counts: list[list[int]]
    """Of the tuned model."""
    base_counts: list[list[int]]


class LossPoint(Model):
    """A loss after so many optimizer steps."""

    step: int
    loss: float


class OverfittingResult(Model):
    """Whether the model learnt its rows by heart rather than what they have in common."""

    verdict: Literal["none", "overfitting", "unknown"]
    message: str
    """The verdict in a sentence, with its numbers and what to do."""
    gap: float | None = None
    """Validation loss minus training loss, per token, of the model as published."""
    best_step: int | None = None
    """The step of the lowest validation loss."""
    opened_at: int | None = None
    """The step from which the validation loss rose while the training loss went on falling."""
    forgetting: Measure | None = None
    """Perplexity of general text, which the data is not."""


class BiasFinding(Model):
    """One comparison, and whether the tuning made it worse."""

    kind: Literal["swap", "pair"]
    """`swap`: the data's own rows with terms of a group exchanged. `pair`: a sentence beside its counterpart."""
    category: str
    """`gender`, `age`, …"""
    base: Estimate
    tuned: Estimate
    change: Estimate
    flagged: bool
    """The interval of the change, corrected for the number of comparisons, is on the wrong side of zero."""
    message: str


class BiasResult(Model):
    """What the tuning changed between groups of people. Only the change is blamed on it."""

    findings: list[BiasFinding] = Field(default=[])
    representation: dict[str, dict[str, int]] = Field(default={})
    """Training rows that name a group, by category: `{"gender": {"female": 10, "male": 30}}`."""
    notes: list[str] = Field(default=[])
    """What was too little to say anything about."""


class CrossValidationResult(Model):
    """The same training on all parts of the data but one, each part once."""

    metric: str
    folds: list[float]
    mean: float
    deviation: float


class RejectedRow(Model):
    """A row that was left out."""

    reason: str
    where: str
    """Object and line."""
    text: str


class LengthBin(Model):
    """Rows of `start` to before `end` tokens."""

    start: int
    end: int
    rows: int


class GateCheck(Model):
    """One line of `evaluation.gate`."""

    metric: str
    rule: str
    """As a person would say it: `evalLoss at most 1.2`."""
    value: float | None
    """Absent where it could not be measured."""
    passed: bool


class EnergyUse(Model):
    """What the GPUs took for the training."""

    watt_hours: float | None = None
    """Absent where it was not measured."""
    message: str = "not measured"
    """What measured it and what is in it, or why there is no number."""


class EvaluationReport(Model):
    """All of it. What could not be computed is named in `missing`, with why."""

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
    missing: list[str] = Field(default=[])

    def explain_too_few_rows(self) -> str | None:
        """That there were too few validation rows for intervals, if so."""
        # The losses of dpo and kto have no change row by row, and no interval however many rows there are.
        changes = [measure.change for measure in self.measures if measure.change]
        row_counts = [change.samples for change in changes if change.low is None]
        if not row_counts:
            return None
        return (
            f"{min(row_counts)} validation rows are too few for intervals: the report cannot tell a change from chance"
        )

    def flatten_metrics(self) -> dict[str, float]:
        """The measures as plain numbers: `accuracy`, `baseAccuracy`, …"""
        metrics: dict[str, float] = {}
        for measure in self.measures:
            metrics[measure.name] = measure.tuned.value
            if measure.base:
                metrics["base" + measure.name[0].upper() + measure.name[1:]] = measure.base.value
        return metrics
