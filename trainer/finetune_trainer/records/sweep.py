"""Results of a FineTuneSweep for programs: `sweep.json` and `best.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_trainer.contract import Configuration, MetricChange, Model, TrialRow

SWEEP_NAME = "sweep.json"
BEST_NAME = "best.json"


class ConfigurationResult(Model):
    """One combination of parameters, with the trials that differ by their seed only."""

    configuration: int
    rank: int | None = None
    """Place in the ranking, from 1 on. Configurations without a complete trial have none."""
    parameters: Configuration
    value: float | None = None
    """Objective: of several complete seeds, the mean."""
    low: float | None = None
    """Lower end of the 95 % confidence interval of a single complete trial, as in its own report."""
    high: float | None = None
    """Upper end of the interval."""
    deviation: float | None = None
    """Sample standard deviation of the objective over the complete seeds."""
    gpu_seconds: int
    trials: list[TrialRow]


class SweepRecord(Model):
    """Content of `sweep.json`."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["SweepReport"] = "SweepReport"
    sweep: str
    """The FineTuneSweep, as `namespace/name`."""
    objective: str
    verdict: Literal["Better", "Inconclusive", "NotCompared"]
    message: str
    """The verdict as a sentence."""
    change: MetricChange | None = None
    """Change from the second configuration to the best one, on the same rows."""
    compared: list[str] = Field(default=[])
    """Names of the two trials that `change` compares, the best first."""
    test: dict[str, float] = Field(default={})
    """Metrics of the best trial on `evaluation.test`."""
    configurations: list[ConfigurationResult]
    """All configurations: first the ranked ones, the best first."""
    problems: list[str] = Field(default=[])
    """Files that could not be read, each with the reason."""

    def to_bytes(self) -> bytes:
        """Return the record as it is stored: JSON in UTF-8."""
        return _to_bytes(self)


class BestConfiguration(Model):
    """Content of `best.json`."""

    configuration: int
    parameters: Configuration
    run: str
    """Name of the FineTuneJob: of several seeds, the first one that is complete."""
    adapter_uri: str | None = Field(default=None, alias="adapterURI")
    digest: str | None = None
    metric: str
    value: float
    """Objective: of several complete seeds, the mean."""

    def to_bytes(self) -> bytes:
        """Return the record as it is stored: JSON in UTF-8."""
        return _to_bytes(self)


def _to_bytes(record: Model) -> bytes:
    return (record.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n").encode()
