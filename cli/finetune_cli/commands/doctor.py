"""`finetune doctor`: what a cluster and a namespace lack for a run, and how to provide it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from finetune_cli.errors import CommandError
from finetune_cli.examination.findings import Finding, Level, Subject, run_checks
from finetune_cli.exit_statuses import EXIT_FAILURE, EXIT_USAGE
from finetune_cli.session import Session
from finetune_trainer.text import to_one_line


def examine_cluster(
    session: Session,
    storage: Annotated[
        str | None, typer.Option(metavar="URI", help="Also list this s3:// URI with the keys of this machine.")
    ] = None,
) -> None:
    """Check what a run needs: cluster, rights, quotas, Secrets and storage. Exit status 1: something is missing.

    Works with the rights of a tenant. What these do not show is reported as unknown.
    """
    if storage is not None and not storage.startswith("s3://"):
        raise CommandError(f"--storage must be a URI such as s3://bucket/prefix, not {storage!r}", EXIT_USAGE)
    findings: list[Finding] = []
    for finding in _examine(session, storage):
        findings.append(finding)
        if not session.terminal.prints_data:
            session.terminal.print_line(to_one_line(f"{finding.level}: {finding.check}: {finding.message}"))
    if session.terminal.prints_data:
        session.terminal.print_data([asdict(finding) for finding in findings])
    if any(finding.level is Level.MISSING for finding in findings):
        raise typer.Exit(EXIT_FAILURE)


def _examine(session: Session, storage: str | None) -> Iterator[Finding]:
    from finetune_cli.examination.cluster import CLUSTER_CHECKS
    from finetune_cli.examination.namespace import NAMESPACE_CHECKS
    from finetune_cli.examination.storage import check_storage
    from finetune_operator.client.cluster_reader import ClusterReader

    subject = Subject(ClusterReader(session.client.server), session.client.namespace)
    yield from run_checks(subject, (*CLUSTER_CHECKS, *NAMESPACE_CHECKS))
    if storage:
        yield check_storage(storage, session.options.endpoint)
