"""`findings.json`: what is known about a run that failed or whose adapter was rejected."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from finetune_trainer.contract import DatasetReport, Model, Reason, Stage
from finetune_trainer.records.evaluation import PreflightFinding, RejectedRow

FINDINGS_NAME = "findings.json"


class RunFindings(Model):
    """Content of `findings.json`. Personal data and secrets in quoted rows are replaced by placeholders."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["RunFindings"] = "RunFindings"
    created_at: str
    config_digest: str
    config: dict[str, Any]
    """The `TrainerConfig` of the run."""
    recipe: int
    reason: Reason
    message: str
    stage: Stage
    """Stage in which the run ended."""
    backend: str | None = None
    dataset: DatasetReport | None = None
    """The report of the prepared dataset, if its preparation was completed."""
    rejected: dict[str, int] = Field(default={})
    """Number of rejected rows by reason, as far as the rows were read."""
    examples: list[RejectedRow] = Field(default=[])
    """A few rejected rows for each reason."""
    preflight: list[PreflightFinding] = Field(default=[])
    """Results of the checks before the first step, up to the one that failed."""
    versions: dict[str, str]

    def to_bytes(self) -> bytes:
        """Return the findings as they are stored: JSON in UTF-8."""
        return (self.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n").encode()
