"""Sentences for users about the texts of Kubernetes and about the end of an attempt."""

from __future__ import annotations

from finetune_operator.api.labels import TRAINER_CONTAINER
from finetune_operator.observed.objects import ReasonMessage
from finetune_operator.observed.pod import ContainerTermination


def join_reason(reason_message: ReasonMessage) -> str:
    """Return the reason and the message, as far as there are any."""
    return ": ".join(part for part in reason_message if part)


def describe_termination(termination: ContainerTermination) -> str:
    """Return sentences for users on how an attempt ended, and which checkpoint it has saved."""
    if termination.outcome:
        end = f"The last attempt ended with {termination.outcome.reason}: {termination.outcome.message}"
        return f"The pod was evicted: {termination.eviction_message} {end}" if termination.eviction_message else end
    if termination.container != TRAINER_CONTAINER:
        end = join_reason(termination.reason_message)
        return f"The init container {termination.container} was terminated ({end}), so that no trainer started."
    saved = f" A checkpoint of step {termination.checkpoint.step} is stored." if termination.checkpoint else ""
    if termination.reason_message.reason == "OOMKilled":
        return f"The last attempt exceeded its memory limit. Raise spec.compute.resources.limits.memory.{saved}"
    verb = "ended" if termination.exit_code is None else f"exited with code {termination.exit_code}"
    reason = join_reason(termination.reason_message)
    return f"The last attempt {verb}{f' ({reason})' if reason else ''} and wrote no termination message.{saved}"
