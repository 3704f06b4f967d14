"""Settings of the operator, read from environment variables such as `FINETUNE_OPERATOR_TRAINER_IMAGE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from finetune_operator.policy.defaults import Defaults
from finetune_operator.policy.label_selector import check_label_selector
from finetune_operator.policy.limits import Bounds


class Settings(BaseSettings):
    """Settings of the operator, which a platform engineer sets through the values of the chart."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_OPERATOR_", frozen=True, use_attribute_docstrings=True)

    trainer_image: str = Field(default="finetune-trainer:0.1.0", min_length=1)
    """Image of the trainer pods. A FineTuneJob can set another one in `spec.compute.image`."""
    trainer_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """Pull policy of the trainer pods. If unset, Kubernetes uses `Always` for `:latest` and `IfNotPresent`
    otherwise."""
    task_image: str | None = Field(default=None, min_length=1)
    """Image of the task pods, which delete old checkpoints. If unset, the trainer image is used, which is larger."""
    watch_namespaces: list[str] = []
    """Namespaces that the operator watches, as a JSON list. If empty, `watch_namespace_selector` selects them."""
    watch_namespace_selector: Annotated[str, AfterValidator(check_label_selector)] = ""
    """Label selector of the namespaces that the operator watches, such as `finetune.dev/enabled=true,team in (a,b)`. It
    cannot be combined with `watch_namespaces`. If both are empty, the operator watches the whole cluster."""
    installation_id: str = Field(default="", max_length=253, pattern=r"^[A-Za-z0-9./_-]*$")
    """Identifies this installation of the operator. It is written into each Job, and a run whose Job names another
    installation is left alone. If empty, Jobs get no id, and all runs of installations with an id are left alone."""
    bounds: Bounds = Bounds()
    """Bounds on what FineTuneJobs may request, as a JSON object."""
    defaults: Defaults = Defaults()
    """Defaults for fields that FineTuneJobs leave unset, as a JSON object."""
    profiles_file: Path | None = None
    """JSON file with the compute profiles. It is read again when a Job is created."""
    progress_interval: float = Field(default=10, gt=0)
    """Seconds between two requests for the progress of a running trainer."""
    resync_interval: float = Field(default=300, gt=0)
    """Seconds between two full lists, which compensate for lost watch events."""
    checkpoint_retention_seconds: int = Field(default=604800, ge=0, le=31536000)
    """Seconds after which the checkpoints of failed, cancelled and deleted runs are deleted. 0 keeps them."""
    workers: int = Field(default=8, ge=1, le=256)
    """Number of FineTuneJobs that are reconciled concurrently."""
    request_timeout: float = Field(default=30, gt=0)
    """Timeout of a request to the API server, in seconds."""
    lease_namespace: str = Field(default="default", min_length=1, max_length=63)
    """Namespace of the Lease for leader election."""
    lease_name: str = Field(default="finetune-operator", min_length=1, max_length=253)
    """Name of the Lease for leader election. Installations in the same namespace need different names."""
    lease_seconds: int = Field(default=10, ge=1, le=3600)
    """Seconds after which a leader that does not renew its Lease is replaced."""
    health_port: int = Field(default=8080, ge=0, le=65535)
    """Port of `/healthz` and `/readyz`. 0 disables the server."""
    metrics_port: int = Field(default=9090, ge=0, le=65535)
    """Port of `/metrics`. 0 disables the server."""
    metrics_max_jobs: int = Field(default=1000, ge=0)
    """Maximum number of running FineTuneJobs with metrics of their own, such as their loss."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of log messages."""
    log_format: Literal["text", "json"] = "text"
    """Format of log messages: text, or one JSON object per line."""

    @model_validator(mode="after")
    def _check_namespaces(self) -> Self:
        if self.watch_namespaces and self.watch_namespace_selector:
            raise ValueError("set either watch_namespaces or watch_namespace_selector, not both")
        return self
