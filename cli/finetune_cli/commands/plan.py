"""`finetune plan`: what a run would do and need, from `finetune-trainer plan` on this machine or in a pod."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_USAGE
from finetune_cli.options import OutputFormat
from finetune_cli.session import Session
from finetune_cli.trainer_pods import (
    PodRequest,
    build_trainer_command,
    get_run_section,
    is_trainer_installed,
    run_pod,
)

if TYPE_CHECKING:
    from finetune_operator.api import FineTuneJob

_DEADLINE_SECONDS = 6 * 3600
_LOG_LINE = re.compile(r"\d\d:\d\d:\d\d ")
_FAILURE_LINE = re.compile(r"[A-Z][A-Za-z0-9]+: ")
_LOCAL_SCHEME = "file://"


@dataclass(frozen=True)
class PlanOptions:
    """Options of `finetune-trainer plan`, and where it runs."""

    json: Annotated[bool, typer.Option("--json", help="Print JSON, as `-o json`.")] = False
    check: Annotated[bool, typer.Option(help="Also load the base model and run the preflight checks.")] = False
    show_rows: Annotated[
        int, typer.Option(min=0, max=1000, metavar="N", help="Also print the first N rows as they are trained on.")
    ] = 0
    gpu_hour_price: Annotated[
        float | None, typer.Option(min=0, help="Price of one GPU for an hour; adds the cost of a sweep or schedule.")
    ] = None
    local: Annotated[
        bool | None,
        typer.Option(
            "--local/--pod",
            help="Run on this machine, or in a pod. By default on this machine if the trainer is installed.",
        ),
    ] = None
    image: Annotated[str | None, typer.Option(help="Trainer image of the pod; by default that of the newest run.")] = (
        None
    )

    def build_arguments(self, output: OutputFormat) -> list[str]:
        """Return the options for `finetune-trainer plan`."""
        prints_json = self.json or output is not OutputFormat.TABLE
        flags = [("--json", prints_json), ("--check", self.check)]
        arguments = [flag for flag, is_set in flags if is_set]
        arguments += ["--show-rows", str(self.show_rows)] if self.show_rows else []
        return arguments + (["--gpu-hour-price", str(self.gpu_hour_price)] if self.gpu_hour_price is not None else [])


def plan_run(
    session: Session,
    file: Annotated[Path, typer.Argument(help="YAML of a FineTuneJob, a FineTuneSchedule or a FineTuneSweep.")],
    options: PlanOptions,
) -> None:
    """Show what a run would do and need, without training: rows, steps, memory, time and findings."""
    is_local = is_trainer_installed() if options.local is None else options.local
    load_document(file)  # so that mistakes have the same exit status here and in a pod
    arguments = options.build_arguments(session.options.output)
    status = _plan_here(session, file, arguments) if is_local else _plan_in_pod(session, file, arguments, options.image)
    if status:
        raise typer.Exit(status)


def _plan_here(session: Session, file: Path, arguments: list[str]) -> int:
    if not is_trainer_installed():
        message = "the trainer is not installed here: pip install 'finetune-operator[trainer]', or plan without --local"
        raise CommandError(message, EXIT_USAGE)
    endpoint = session.options.endpoint
    environment = dict(os.environ)
    if endpoint:
        environment["FINETUNE_MANIFEST"] = json.dumps(_replace_endpoint(load_document(file), endpoint))
    command = build_trainer_command("plan", *([] if endpoint else [str(file)]), *arguments)
    is_yaml = session.options.output is OutputFormat.YAML
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE if is_yaml else None, text=True, check=False)
    if is_yaml and done.stdout:
        session.terminal.print_data(json.loads(done.stdout))
    return done.returncode


def _plan_in_pod(session: Session, file: Path, arguments: list[str], image: str | None) -> int:
    document = load_document(file)
    metadata = document.get("metadata") or {}
    session = session.in_namespace(metadata.get("namespace"))
    request = PodRequest(
        purpose="plan",
        arguments=["plan", *arguments],
        job=_read_run(file, document, session.client.namespace),
        document=document,
        text=file.read_text(encoding="utf-8"),
        deadline_seconds=_DEADLINE_SECONDS,
        image=image,
    )
    with run_pod(session, request) as (pods, name):
        printer = PlanPrinter(session, is_json="--json" in arguments)
        printer.print_all(pods.follow_log(name))
        end = pods.wait_for_end(name)
    if end.exit_code and not printer.has_failure:
        reason = end.reason or f"exit status {end.exit_code}"
        raise CommandError(f"the pod of the plan ended without a result: {reason}")
    return end.exit_code


def load_document(file: Path) -> dict[str, Any]:
    """Return a manifest that the trainer accepts, as plain values. Raises `TrainerError` with one line per mistake."""
    from finetune_trainer.config import loader
    from finetune_trainer.config.documents import read_documents, to_plain

    loader.load_template(file)
    document: Any = to_plain(read_documents(file)[0])
    return dict(document)


def _read_run(file: Path, document: dict[str, Any], namespace: str) -> FineTuneJob:
    """Return a run of the manifest. Raises `CommandError` if a pod cannot plan it."""
    from pydantic import ValidationError

    from finetune_operator.api import FineTuneJob
    from finetune_operator.resources.volumes import list_data_sources

    metadata = {**document["metadata"], "namespace": namespace, "uid": ""}
    try:
        job = FineTuneJob.model_validate({"metadata": metadata, "spec": get_run_section(document)})
    except ValidationError as error:
        detail = error.errors()[0]
        raise CommandError(f"{file}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}", EXIT_USAGE) from None
    uris = [job.spec.model.uri, *(source.uri for source in list_data_sources(job.spec))]
    local = [uri for uri in uris if "://" not in uri or uri.startswith(_LOCAL_SCHEME)]
    if local:
        raise CommandError(f"{local[0]} is on this machine, which a pod cannot read: use --local", EXIT_USAGE)
    return job


def _replace_endpoint(document: dict[str, Any], endpoint: str) -> dict[str, Any]:
    section = get_run_section(document)
    section["storage"] = {**(section.get("storage") or {}), "endpoint": endpoint}
    return document


class PlanPrinter:
    """Prints the log of a pod, in which stdout and stderr of the plan are mixed: the plan to stdout, the rest to
    stderr."""

    def __init__(self, session: Session, *, is_json: bool) -> None:
        self._session = session
        self._is_json = is_json
        self.has_failure = False
        """Whether the log has the reason of a failure."""

    def print_all(self, lines: Iterable[str]) -> None:
        """Print the lines while they are written. JSON is printed at the end."""
        result: list[str] = []
        for line in lines:
            if not self._is_result(line, bool(result)):
                self._session.terminal.print_note(line)
            elif self._is_json:
                result.append(line)
            else:
                self._session.terminal.print_line(line)
        if result:
            self._session.terminal.print_data(json.loads("\n".join(result)))

    def _is_result(self, line: str, has_begun: bool) -> bool:
        self.has_failure = self.has_failure or bool(_FAILURE_LINE.match(line) and self._is_reason(line))
        if self.has_failure or _LOG_LINE.match(line):
            return False
        return has_begun or line.startswith("{") or not self._is_json

    def _is_reason(self, line: str) -> bool:
        from finetune_trainer.contract import Reason

        return line.partition(":")[0] in [reason.value for reason in Reason]
