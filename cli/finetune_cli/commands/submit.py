"""`finetune submit`: create the object of a manifest, and wait for the end of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_USAGE
from finetune_cli.session import Session

if TYPE_CHECKING:
    from finetune_cli.manifests import Manifest


@dataclass(frozen=True)
class SubmitOptions:
    """How a manifest is submitted."""

    name: Annotated[str | None, typer.Option(help="Name of the object, in place of that in the manifest.")] = None
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait for the end of the run. The exit status is its outcome.")
    ] = False
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="With --wait: stop waiting after this time.")
    ] = None


def submit_manifest(
    session: Session,
    file: Annotated[str, typer.Argument(metavar="FILE", help="YAML file of a manifest, or - for stdin.")],
    options: SubmitOptions,
) -> None:
    """Create the FineTuneJob, FineTuneSchedule or FineTuneSweep of a manifest.

    With --wait, the exit status is 0 if the run is complete, 1 if it failed, 3 if it was cancelled, 4 if it was
    suspended and 5 after --timeout.
    """
    from finetune_cli.following import follow_run
    from finetune_cli.manifests import read_single_manifest

    if options.timeout is not None and not options.wait:
        raise CommandError("--timeout applies with --wait only", EXIT_USAGE)
    manifest = read_single_manifest(file)
    body = _build_body(manifest, options)
    session = session.in_namespace(manifest.metadata.get("namespace"))
    created = session.client.submit(body)
    name, namespace = created.metadata.name, created.metadata.namespace
    if not options.wait:
        _print_created(session, {"kind": manifest.kind, "namespace": namespace, "name": name})
        return
    session.terminal.print_note(f"{manifest.kind} {name} created in namespace {namespace}")
    follow_run(session, name, options.timeout)


def _build_body(manifest: Manifest, options: SubmitOptions) -> dict[str, Any]:
    """Return the object to create. Raises `CommandError` and `InvalidManifest` before anything is created."""
    from finetune_cli.manifests import find_problems
    from finetune_operator.api import KIND
    from finetune_operator.client import InvalidManifest

    if options.name:
        manifest = manifest.with_name(options.name)
    problems = find_problems(manifest)
    if problems:
        raise InvalidManifest("; ".join(problems), problems)
    if options.wait and manifest.kind != KIND:
        message = f"--wait waits for a FineTuneJob; {manifest.source} has a {manifest.kind}: submit it without --wait"
        raise CommandError(message, EXIT_USAGE)
    return manifest.to_body()


def _print_created(session: Session, created: dict[str, str]) -> None:
    if session.terminal.prints_data:
        session.terminal.print_data(created)
    else:
        session.terminal.print_line(f"{created['kind']} {created['name']} created in namespace {created['namespace']}")
