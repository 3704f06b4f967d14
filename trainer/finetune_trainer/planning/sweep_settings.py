"""The spec of a FineTuneSweep, as far as its plan needs it, with the rules that the API server checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field

from finetune_trainer.config.loader import parse_section
from finetune_trainer.contract import (
    DEFAULT_PARAMETERS,
    SWEEP_RULES,
    UNIQUE_OUTPUT_RULE,
    Halving,
    MetricName,
    Model,
    Search,
    SweepParameters,
    TrainerConfig,
    cel_rules,
)


class _Template(Model):
    model_config = ConfigDict(extra="ignore", json_schema_extra=cel_rules(UNIQUE_OUTPUT_RULE))

    spec: TrainerConfig


class _Objective(Model):
    metric: MetricName = "evalLoss"


class SweepSettings(Model):
    """The fields of a FineTuneSweep's spec. Those that change no plan are not checked."""

    model_config = ConfigDict(json_schema_extra=cel_rules(*SWEEP_RULES))

    template: _Template
    parameters: SweepParameters = DEFAULT_PARAMETERS
    seeds: int = Field(default=1, ge=1, le=10)
    search: Search = Search()
    objective: _Objective = _Objective()
    halving: Halving | None = None
    max_parallel: object = None
    max_failed: object = None
    budget: object = None
    output: object
    suspend: object = None
    cancel: object = None


def read_settings(spec: Mapping[str, Any], template: TrainerConfig) -> SweepSettings:
    """Return the settings of a sweep from its spec and the config of its template.

    Raises `CONFIG_INVALID` with one line for each mistake that the API server would reject.
    """
    run_spec = {**template.to_json(), "output": spec["template"]["spec"]["output"]}  # with its placeholders
    return parse_section(SweepSettings, {**spec, "template": {"spec": run_spec}}, ("spec",))
