"""`finetune validate`: mistakes in manifests, with their line numbers, without a cluster."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_cli.exit_statuses import EXIT_USAGE
from finetune_cli.session import Session

if TYPE_CHECKING:
    from finetune_cli.manifests import Manifest


def validate_files(
    session: Session,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="YAML files, or - for stdin.")],
    server: Annotated[
        bool, typer.Option("--server", help="Also ask the API server, which checks policies of the cluster.")
    ] = False,
) -> None:
    """Check manifests of FineTuneJobs, FineTuneSchedules and FineTuneSweeps: fields, types, limits and rules.

    Works without a cluster. Each mistake is one line, with its line number in the file; the exit status is then 2.
    """
    from finetune_cli.manifests import read_manifests

    reports = [
        (manifest, _find_all_problems(session, manifest, server)) for file in files for manifest in read_manifests(file)
    ]
    if session.terminal.prints_data:
        session.terminal.print_data([_to_data(manifest, problems) for manifest, problems in reports])
    else:
        for manifest, problems in reports:
            _print_report(session, manifest, problems)
    if any(problems for _, problems in reports):
        raise typer.Exit(EXIT_USAGE)


def _find_all_problems(session: Session, manifest: Manifest, server: bool) -> list[str]:
    from finetune_cli.manifests import find_problems
    from finetune_operator.client import InvalidManifest, ObjectExists

    if not manifest.is_checked:
        return []
    problems = find_problems(manifest)
    if problems or not server:
        return problems
    namespaced = session.in_namespace(manifest.metadata.get("namespace"))
    try:
        with suppress(ObjectExists):  # the API server has validated the manifest before it found the other object
            namespaced.client.submit(manifest.to_body(), dry_run=True)
    except InvalidManifest as error:
        return [f"{manifest.source}: {problem}" for problem in error.problems]
    return []


def _to_data(manifest: Manifest, problems: list[str]) -> dict[str, object]:
    return {
        "file": manifest.source,
        "kind": manifest.kind,
        "name": str(manifest.metadata.get("name") or manifest.metadata.get("generateName") or ""),
        "checked": manifest.is_checked,
        "problems": problems,
    }


def _print_report(session: Session, manifest: Manifest, problems: list[str]) -> None:
    name = f"{manifest.kind} {manifest.metadata.get('name') or manifest.metadata.get('generateName') or ''}".strip()
    for problem in problems:
        session.terminal.print_error(problem)
    if not manifest.is_checked:
        session.terminal.print_note(f"{manifest.source}: {name} is not checked: it is of another API")
    elif not problems:
        session.terminal.print_line(f"{manifest.source}: {name} is valid")
