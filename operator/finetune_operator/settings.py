"""The operator's settings, read from the environment: `FINETUNE_OPERATOR_TRAINER_IMAGE` and so on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from finetune_operator.policy.defaults import Defaults
from finetune_operator.policy.limits import Bounds


class Settings(BaseSettings):
    """What a platform engineer may set; the chart's values are these."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_OPERATOR_", frozen=True, use_attribute_docstrings=True)

    trainer_image: str = Field(default="finetune-trainer:0.1.0", min_length=1)
    """Image of the trainer pods; a FineTuneJob may name another in `spec.compute.image`."""
    trainer_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """Pull policy of the trainer pods. Absent means Kubernetes' own: `Always` for `:latest`, else `IfNotPresent`."""
    watch_namespaces: list[str] = []
    """Namespaces to work in, as a JSON list. Empty means the whole cluster."""
    bounds: Bounds = Bounds()
    """What FineTuneJobs may ask for, as a JSON object."""
    defaults: Defaults = Defaults()
    """What FineTuneJobs get where they leave it open, as a JSON object."""
    progress_interval: float = Field(default=10, gt=0)
    """Seconds between two looks at a running trainer's progress."""
    resync_interval: float = Field(default=300, gt=0)
    """Seconds between two full lists, which repair what a lost event missed."""
    workers: int = Field(default=8, ge=1, le=256)
    """FineTuneJobs that are worked on at the same time."""
    request_timeout: float = Field(default=30, gt=0)
    """Seconds that one call of the API server may take."""
    lease_namespace: str = Field(default="default", min_length=1, max_length=63)
    """Namespace of the Lease by which replicas elect the one that works."""
    lease_name: str = Field(default="finetune-operator", min_length=1, max_length=253)
    """Name of that Lease; installations that share a namespace need one each."""
    lease_seconds: int = Field(default=10, ge=1, le=3600)
    """Seconds after which a leader that is not heard of is replaced."""
    health_port: int = Field(default=8080, ge=0, le=65535)
    """Port of `/healthz` and `/readyz`. 0 serves none."""
    metrics_port: int = Field(default=9090, ge=0, le=65535)
    """Port of `/metrics`. 0 serves none."""
    metrics_max_jobs: int = Field(default=1000, ge=0)
    """Running FineTuneJobs that have metrics of their own, such as their loss."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line."""
