"""`finetune chat`: talk to the tuned model of a run, in a pod of the trainer image or on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from socket import create_connection
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune_cli.chat_client import BASE, TUNED, ChatClient, Conversation, wait_for_port
from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_USAGE
from finetune_cli.options import refuse_empty_text
from finetune_cli.session import Session
from finetune_cli.trainer_pods import (
    PodRequest,
    build_trainer_command,
    is_trainer_installed,
    raise_on_sigterm,
    run_pod,
)
from finetune_trainer.text import escape_invisible

if TYPE_CHECKING:
    from finetune_operator.api import FineTuneJob

_DEADLINE_SECONDS = 4 * 3600
_PORT = 8000
_KILL_SECONDS = 10
_HELP = "/reset forgets the conversation, /system TEXT sets the system prompt, /exit ends."


@dataclass(frozen=True)
class ChatOptions:
    """What is said to which models, and where they run."""

    base: Annotated[bool, typer.Option("--base", help="Also ask the base model.")] = False
    prompt: Annotated[
        str | None, typer.Option(help="Print the answer to this message and end.", callback=refuse_empty_text)
    ] = None
    system: Annotated[str, typer.Option(help="System prompt.")] = ""
    max_tokens: Annotated[int, typer.Option(min=1, max=32768, help="Maximum length of an answer in tokens.")] = 512
    gpus: Annotated[
        int | None, typer.Option(min=0, max=16, help="GPUs of the pod; by default one if the run has GPUs.")
    ] = None
    image: Annotated[str | None, typer.Option(help="Trainer image of the pod; by default that of the run.")] = None
    local: Annotated[bool, typer.Option("--local", help="Load the models on this machine instead of in a pod.")] = False


def chat_with_result(
    session: Session, name: Annotated[str, typer.Argument(help="Name of a complete run.")], options: ChatOptions
) -> None:
    """Talk to the tuned model of a run.

    The model is loaded by a pod that is deleted at the end. Answers are greedy, as those of `finetune-trainer
    generate`.
    """
    started_at = time.monotonic()
    job = session.client.jobs.get(name)
    result = job.status.result if job.status else None
    if result is None:
        phase = job.status.phase if job.status else None
        raise CommandError(f"run {name} has no result to talk to: its phase is {phase or 'Pending'}")
    arguments = ["chat-server", "--adapter", result.adapter_uri, "--max-new-tokens", str(options.max_tokens)]
    document = _build_manifest(session.client.jobs.get_body(name))
    serve = _serve_here if options.local else _serve_in_pod
    with raise_on_sigterm(), serve(session, job, _Server(arguments, document, options)) as client:
        models = [TUNED, BASE] if options.base else [TUNED]
        conversation = Conversation(client, models, options.max_tokens, options.system)
        _Talk(session, conversation, started_at).run(options.prompt)


@dataclass(frozen=True)
class _Server:
    """The command of the server, the manifest that it reads, and the options of the user."""

    arguments: list[str]
    document: dict[str, Any]
    options: ChatOptions


def _build_manifest(body: dict[str, Any]) -> dict[str, Any]:
    metadata = {key: body["metadata"][key] for key in ("name", "namespace")}
    return {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": metadata, "spec": body["spec"]}


@contextmanager
def _serve_in_pod(session: Session, job: FineTuneJob, server: _Server) -> Iterator[ChatClient]:
    options, compute = server.options, job.spec.compute
    request = PodRequest(
        purpose="chat",
        arguments=[*server.arguments, "--port", str(_PORT)],
        job=job,
        document=server.document,
        deadline_seconds=_DEADLINE_SECONDS,
        image=options.image,
        gpus=min(compute.gpus_per_node, 1) if options.gpus is None else options.gpus,
    )
    with run_pod(session, request) as (pods, name):
        port = wait_for_port(pods.follow_log(name), session.terminal.print_note)
        yield ChatClient(port, lambda: pods.open_port(name, port))


@contextmanager
def _serve_here(session: Session, job: FineTuneJob, server: _Server) -> Iterator[ChatClient]:
    if not is_trainer_installed():
        message = "the trainer is not installed here: pip install 'finetune-operator[trainer]', or chat without --local"
        raise CommandError(message, EXIT_USAGE)
    endpoint = session.options.endpoint or job.spec.storage.endpoint
    with tempfile.TemporaryDirectory(prefix="finetune-chat-", ignore_cleanup_errors=True) as folder:
        arguments = [*server.arguments, "--port", "0", "--work-dir", folder]
        command = build_trainer_command(*arguments, *(["--endpoint", endpoint] if endpoint else []))
        environment = {**os.environ, "FINETUNE_MANIFEST": json.dumps(server.document)}
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        try:
            log = (line.rstrip() for line in process.stderr or ())
            port = wait_for_port(log, session.terminal.print_note)
            threading.Thread(target=lambda: [*log], daemon=True).start()  # a full pipe would stop the server
            yield ChatClient(port, lambda: create_connection(("127.0.0.1", port)))
        finally:
            _end_process(process)


def _end_process(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Talk:
    """Reads messages and prints answers."""

    def __init__(self, session: Session, conversation: Conversation, started_at: float) -> None:
        self._terminal = session.terminal
        self._conversation = conversation
        self._started_at: float | None = started_at

    def run(self, prompt: str | None) -> None:
        """Answer a single message, or those that the user types until the end of the input."""
        if prompt is not None and self._terminal.prints_data:
            models = self._conversation.models
            answers = {model: "".join(self._conversation.send(prompt, model)) for model in models}
            self._terminal.print_data({"prompt": prompt, **answers})
            return
        if prompt is not None:
            self._answer(prompt)
            return
        self._terminal.print_note(_HELP)
        for message in _read_messages():
            if not self._obey(message):
                self._answer_or_report(message)

    def _obey(self, message: str) -> bool:
        """Carry out a command. Returns whether the message is one."""
        command, _, text = message.partition(" ")
        if command not in ("/reset", "/system"):
            return False
        self._conversation.reset()
        if command == "/system":
            self._conversation.system = text.strip()
        self._terminal.print_note("the conversation begins again")
        return True

    def _answer_or_report(self, message: str) -> None:
        """Answer a message. An error of one message, such as one that is too long, does not end the conversation."""
        try:
            self._answer(message)
        except CommandError as error:
            self._terminal.print_error(str(error))

    def _answer(self, message: str) -> None:
        for model in self._conversation.models:
            if len(self._conversation.models) > 1:
                self._write(f"{model}: ")
            for part in self._conversation.send(message, model):
                self._note_first_answer()
                self._write(escape_invisible(part))
            self._write("\n")

    def _note_first_answer(self) -> None:
        if self._started_at is not None:
            self._terminal.print_note(f"first answer after {time.monotonic() - self._started_at:.1f} s")
            self._started_at = None

    def _write(self, text: str) -> None:
        self._terminal.print_text(text)
        sys.stdout.flush()


def _read_messages() -> Iterator[str]:
    """Yield the lines that the user types, with editing and history where Python has readline, until /exit."""
    with suppress(ImportError):
        import readline  # noqa: F401

    while True:
        try:
            message = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if message == "/exit":
            return
        if message:
            yield message
