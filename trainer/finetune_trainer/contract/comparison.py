"""Comparison of a fine-tuned model with the adapters of `evaluation.baselines`, as reported to the operator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_trainer.contract.base import Count, Model
from finetune_trainer.contract.evaluation import MetricName, ResultDigest

CHAMPION = "champion"
"""Name among `evaluation.baselines` of the adapter that a schedule may replace by the fine-tuned model."""


class MetricChange(Model):
    """MetricChange is the change of a metric from one adapter to another, measured on the same rows."""

    metric: MetricName
    """metric is the name of the metric."""
    higher_is_better: bool
    """higherIsBetter tells whether higher values are better."""
    baseline: float
    """baseline is the value of the earlier adapter."""
    value: float
    """value is the value of the new adapter."""
    change: float
    """change is `value` minus `baseline`, paired by row."""
    low: float | None = None
    """low is the lower end of the 95 % confidence interval of `change`. It is unset if there are too few rows."""
    high: float | None = None
    """high is the upper end of the 95 % confidence interval of `change`."""
    p_value: float | None = Field(default=None, ge=0, le=1)
    """pValue is the p-value of an exact paired test of the change, if there are too few rows for an interval."""
    samples: Count
    """samples is the number of rows."""


class BaselineComparison(Model):
    """BaselineComparison compares the fine-tuned model with one of `evaluation.baselines`."""

    name: Annotated[str, StringConstraints(max_length=32)]
    """name is the name of the baseline."""
    digest: ResultDigest | None = None
    """digest is the digest of the result that was measured. It is unset if the adapter has no manifest."""
    held_out: bool = False
    """heldOut tells whether the validation rows were held out when the baseline was trained, too. If it is false, the
    baseline may have been trained on them, which makes it look better than it is."""
    changes: list[MetricChange] = Field(default=[], max_length=12)
    """changes are the changes from the baseline to the fine-tuned model."""


class Verdicts(Model):
    """Verdicts are the conclusions of the evaluation about the fine-tuned model."""

    overfitting: Literal["none", "overfitting", "unknown"] = "unknown"
    """overfitting tells whether the model memorized the training data instead of generalizing from it."""
    forgetting: Literal["none", "forgetting", "unknown"] = "unknown"
    """forgetting tells whether the model forgot what the base model knew of general text."""
    bias: Literal["none", "bias", "unknown"] = "unknown"
    """bias tells whether the model treats groups of people more differently than the base model."""
