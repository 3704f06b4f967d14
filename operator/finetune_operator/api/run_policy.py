"""The lifecycle section of a stored FineTuneJob's spec: suspension, deadlines, retries, GPUs.

It is read from the stored object as it is, because the spec may come from another version. The API server has written
the defaults.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from finetune_operator.api.compute import ComputeSpec
from finetune_operator.api.objects import Body
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_trainer.contract import Training

_SPEC_FIELDS, _COMPUTE, _TRAINING = FineTuneJobSpec.model_fields, ComputeSpec(), Training()


class RunPolicy(NamedTuple):
    """The fields of the spec that the operator needs as long as the run lasts. The defaults are those of the API."""

    suspend: bool = _SPEC_FIELDS["suspend"].default
    backoff_limit: int = _SPEC_FIELDS["backoff_limit"].default
    startup_deadline_seconds: int | None = None
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None
    gpus_per_node: int = _COMPUTE.gpus_per_node
    """GPUs of each pod."""
    stall_seconds: int = _TRAINING.stall_seconds
    """`training.stallSeconds`."""
    nodes: int = _COMPUTE.nodes
    cancel: bool = _SPEC_FIELDS["cancel"].default
    max_interruptions: int = _SPEC_FIELDS["max_interruptions"].default
    suspend_at_step: int | None = None
    budget_gpu_seconds: int | None = None
    """`budget.gpuSeconds`."""
    budget_active_seconds: int | None = None
    """`budget.activeSeconds`."""
    gpu_resource: str = _COMPUTE.gpu_resource


_DEFAULTS = RunPolicy()


class _ComputeFields(msgspec.Struct, rename="camel"):
    nodes: int = _DEFAULTS.nodes
    gpus_per_node: int = _DEFAULTS.gpus_per_node
    gpu_resource: str = _DEFAULTS.gpu_resource


class _TrainingFields(msgspec.Struct, rename="camel"):
    stall_seconds: int = _DEFAULTS.stall_seconds


class _BudgetFields(msgspec.Struct, rename="camel"):
    gpu_seconds: int | None = None
    active_seconds: int | None = None


class _SpecFields(msgspec.Struct, rename="camel"):
    suspend: bool = _DEFAULTS.suspend
    backoff_limit: int = _DEFAULTS.backoff_limit
    startup_deadline_seconds: int | None = None
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None
    compute: _ComputeFields = msgspec.field(default_factory=_ComputeFields)
    training: _TrainingFields = msgspec.field(default_factory=_TrainingFields)
    cancel: bool = _DEFAULTS.cancel
    max_interruptions: int = _DEFAULTS.max_interruptions
    suspend_at_step: int | None = None
    budget: _BudgetFields = msgspec.field(default_factory=_BudgetFields)


def read_run_policy(body: Body) -> RunPolicy:
    """Return the policy of a stored FineTuneJob, or the defaults if its spec cannot be read: then no Job is created."""
    try:
        return parse_run_policy(body)
    except msgspec.ValidationError:
        return RunPolicy()


def parse_run_policy(body: Body) -> RunPolicy:
    """Return the policy of a stored FineTuneJob that a Job is created for.

    Raises `msgspec.ValidationError` if the spec cannot be read.
    """
    spec = msgspec.convert(body["spec"], _SpecFields)
    return RunPolicy(
        suspend=spec.suspend,
        backoff_limit=spec.backoff_limit,
        startup_deadline_seconds=spec.startup_deadline_seconds,
        active_deadline_seconds=spec.active_deadline_seconds,
        ttl_seconds_after_finished=spec.ttl_seconds_after_finished,
        gpus_per_node=spec.compute.gpus_per_node,
        stall_seconds=spec.training.stall_seconds,
        nodes=spec.compute.nodes,
        cancel=spec.cancel,
        max_interruptions=spec.max_interruptions,
        suspend_at_step=spec.suspend_at_step,
        budget_gpu_seconds=spec.budget.gpu_seconds,
        budget_active_seconds=spec.budget.active_seconds,
        gpu_resource=spec.compute.gpu_resource,
    )
