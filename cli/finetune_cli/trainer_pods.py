"""Runs commands of `finetune-trainer` for a user: on this machine, or in a pod of the trainer image."""

from __future__ import annotations

import copy
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from finetune_cli.errors import CommandError

if TYPE_CHECKING:
    from finetune_cli.session import Session
    from finetune_operator.api import FineTuneJob
    from finetune_operator.client.tool_pods import ToolPods

STARTUP_SECONDS = 900
"""Time in which a pod has to start: images have several gigabytes."""
_STOPPED_STATUS = 143
_TRAINER_LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "boto3")


@dataclass(frozen=True)
class PodRequest:
    """A command of the trainer for a run, and where it runs."""

    purpose: str
    arguments: Sequence[str]
    job: FineTuneJob
    """The run, which may not exist yet."""
    document: Mapping[str, Any]
    """The manifest of the command."""
    deadline_seconds: int
    text: str | None = None
    """The manifest as the user has written it, so that messages name its lines."""
    image: str | None = None
    gpus: int = 0


def is_trainer_installed() -> bool:
    """Return whether this Python has the libraries of the trainer."""
    return all(find_spec(name) for name in _TRAINER_LIBRARIES)


def build_trainer_command(*arguments: str) -> list[str]:
    """Return the command line of `finetune-trainer` with the Python of this process."""
    return [sys.executable, "-m", "finetune_trainer", *arguments]


@contextmanager
def run_pod(session: Session, request: PodRequest) -> Iterator[tuple[ToolPods, str]]:
    """Start a pod, wait until it runs, and yield its namespace's pods and its name. Deletes it at the end.

    SIGTERM and Ctrl-C end the block, so that the pod is deleted.
    """
    from finetune_operator.client.tool_pods import ToolPod, ToolPods, build_tool_pod

    pods = ToolPods(session.client.server, session.client.namespace)
    template = pods.find_job(request.job.metadata.name)
    image = request.image or request.job.spec.compute.image or _read_image(template, pods.namespace)
    job, manifest = _complete(session, request, template)
    tool = ToolPod(request.purpose, request.arguments, image, manifest, request.deadline_seconds, request.gpus)
    session.terminal.print_note(f"starts a pod of {image} in namespace {pods.namespace}")
    with raise_on_sigterm(), pods.start(build_tool_pod(job.spec, job.metadata.labels, tool)) as name:
        pods.wait_for_start(name, STARTUP_SECONDS, session.terminal.print_note)
        yield pods, name


def get_run_section(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec of a FineTuneJob, or that of the template of another kind."""
    spec: dict[str, Any] = document["spec"]
    section: dict[str, Any] = spec["template"]["spec"] if "template" in spec else spec
    return section


def _read_image(template: Mapping[str, Any] | None, namespace: str) -> str:
    from finetune_operator.client.installation_defaults import find_trainer

    if template is None:
        message = f"there is no Job of a run in namespace {namespace} to take the trainer image from"
        raise CommandError(f"{message}: name it with --image")
    return str(find_trainer(template["spec"]["template"]["spec"])["image"])


def _complete(session: Session, request: PodRequest, template: Mapping[str, Any] | None) -> tuple[FineTuneJob, str]:
    """Return the run with the defaults of the installation, and the text of its manifest with them."""
    from finetune_operator.api.labels import JOB_LABEL
    from finetune_operator.client.errors import ObjectNotFound
    from finetune_operator.client.installation_defaults import read_defaults
    from finetune_operator.policy.defaults import apply_defaults

    completed = request.job
    if template is not None:
        with suppress(ObjectNotFound):  # the Job is being deleted
            owner = session.client.jobs.get(template["metadata"]["labels"][JOB_LABEL])
            completed = apply_defaults(request.job, read_defaults(dict(template), owner))
    if completed.spec.storage == request.job.spec.storage and request.text is not None:
        return completed, request.text
    document = copy.deepcopy(dict(request.document))
    get_run_section(document)["storage"] = completed.spec.storage.to_json()
    return completed, json.dumps(document)


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that what the block has started is removed."""

    def stop(*_: object) -> None:
        raise SystemExit(_STOPPED_STATUS)

    previous: Callable[..., object] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
