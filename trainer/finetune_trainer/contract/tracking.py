"""Tracking section of `TrainerConfig`: the experiment tracker. It never affects the result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, StringConstraints

from finetune_trainer.contract.base import Model, cel_rules

TRACKING_RULES = (
    ("self.tool != 'mlflow' || has(self.uri)", "tool mlflow needs uri, the URL of the MLflow server"),
    (
        "self.tool != 'tensorboard' || (!has(self.uri) && !has(self.experiment))",
        "tool tensorboard publishes its event files below output.uri; remove uri and experiment",
    ),
)
"""Rules of `Tracking` and its subclasses."""


class Tracking(Model):
    """Tracking configures an experiment tracker that records losses and metrics."""

    model_config = ConfigDict(json_schema_extra=cel_rules(*TRACKING_RULES))

    tool: Literal["mlflow", "wandb", "tensorboard"]
    """tool is the experiment tracker. `mlflow`: an MLflow server. `wandb`: Weights & Biases. `tensorboard`: event files
    that are published with the result, below `tensorboard/`. A tracker that is unreachable, slow or rejects requests
    never blocks the run: records that it does not accept are dropped, and the message of the run gives their number."""
    uri: Annotated[str, StringConstraints(pattern=r"^https?://[^\s?#@\\]+$", max_length=512)] | None = None
    """uri is the URL of the tracking server, without credentials. For `wandb`, if unset, wandb.ai is used."""
    experiment: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9/_][A-Za-z0-9 ._/-]*$", max_length=128)] | None
    ) = None
    """experiment is the MLflow experiment, which is created if it does not exist, or the W&B project, as `project` or
    `entity/project`. If unset, `finetune` is used."""
