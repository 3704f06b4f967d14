"""Runs commands of `finetune-trainer` for a user: on this machine, or in a pod of the trainer image."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_cli.session import Session
    from finetune_operator.api.spec import RunSpec
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
    spec: RunSpec
    labels: Mapping[str, str]
    manifest: str
    deadline_seconds: int
    image: str | None = None
    gpus: int = 0
    run: str | None = None
    """Name of the run whose Job has the image."""


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

    pods = ToolPods(session.client.core, session.client.namespace)
    image = request.image or request.spec.compute.image or pods.find_image(request.run)
    tool = ToolPod(request.purpose, request.arguments, image, request.manifest, request.deadline_seconds, request.gpus)
    session.terminal.print_note(f"starts a pod of {image} in namespace {pods.namespace}")
    with raise_on_sigterm(), pods.start(build_tool_pod(request.spec, request.labels, tool)) as name:
        pods.wait_for_start(name, STARTUP_SECONDS, session.terminal.print_note)
        yield pods, name


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
