"""Texts for users: what an attempt does, and how it ended."""

from __future__ import annotations

from finetune_operator.api.labels import TRAINER_CONTAINER
from finetune_operator.observed.objects import ReasonMessage
from finetune_operator.observed.pod import ContainerTermination
from finetune_trainer.contract import OUTPUT_WAIT_SECONDS, Stage

STAGE_TEXTS = {
    Stage.WAITING_FOR_OUTPUT: (
        f"is waiting for another run to release spec.output.uri (at most {OUTPUT_WAIT_SECONDS} s)"
    ),
    Stage.DOWNLOADING: "is downloading the model and the data",
    Stage.PREPARING: "is preparing the data",
    Stage.LOADING: "is loading the model",
    Stage.EVALUATING: "is evaluating the model",
    Stage.EXPORTING: "is exporting the result",
    Stage.UPLOADING: "is uploading the result",
}
"""What the trainer does in a stage, after the name of its pod. Without an entry, it is training."""


def join_reason(reason_message: ReasonMessage) -> str:
    """Return `REASON: MESSAGE`, without a part that is empty."""
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
