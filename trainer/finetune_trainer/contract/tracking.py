"""The part of `TrainerConfig` that says where the run can be followed. It never changes the result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, StringConstraints

from finetune_trainer.contract.base import Model, cel_rules

TRACKING_RULES = (
    ("self.tool != 'mlflow' || has(self.uri)", "tool mlflow needs uri, the address of its server"),
    (
        "self.tool != 'tensorboard' || (!has(self.uri) && !has(self.experiment))",
        "tool tensorboard has no server, its files lie below output.uri: leave uri and experiment out",
    ),
)
"""For this class and what inherits it."""


class Tracking(Model):
    """Where losses and metrics can be followed and compared with other runs'."""

    model_config = ConfigDict(json_schema_extra=cel_rules(*TRACKING_RULES))

    tool: Literal["mlflow", "wandb", "tensorboard"]
    """`mlflow`: an MLflow server. `wandb`: Weights & Biases. `tensorboard`: event files beside the result, below
    `tensorboard/`. A server that is down, slow or refuses never holds the run up: what it does not take is dropped, and
    the run's message says how much."""
    uri: Annotated[str, StringConstraints(pattern=r"^https?://[^\s?#@\\]+$", max_length=512)] | None = None
    """The server's address, without credentials. `wandb`: absent means wandb.ai."""
    experiment: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9/_][A-Za-z0-9 ._/-]*$", max_length=128)] | None
    ) = None
    """MLflow's experiment, made if it is missing, or W&B's project, as `project` or `entity/project`. Absent means
    `finetune`."""
