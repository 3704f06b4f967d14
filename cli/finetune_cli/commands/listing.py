"""`finetune list`: the runs of a namespace, and results whose runs are gone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_cli.published import open_store
from finetune_cli.session import Session

if TYPE_CHECKING:
    from finetune_operator.client import RunSummary

_COLUMNS = ("NAME", "PHASE", "REASON", "PROGRESS", "ETA", "LOSS", "DURATION", "AGE", "SOURCE")


class PhaseFilter(StrEnum):
    """The phases of runs, which a test compares with the API."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


@dataclass(frozen=True)
class ListOptions:
    """Which runs are listed."""

    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="List all namespaces.")] = False
    phase: Annotated[PhaseFilter | None, typer.Option(case_sensitive=False, help="List runs in this phase only.")] = (
        None
    )
    owner: Annotated[str | None, typer.Option(help="List the runs of this schedule or sweep only; its name.")] = None
    from_uri: Annotated[
        str | None,
        typer.Option("--from", metavar="URI", help="Also list results below this S3 prefix that are of no listed run."),
    ] = None


def list_runs(session: Session, options: ListOptions) -> None:
    """List runs, the newest first."""
    summaries = [each for each in _collect_summaries(session, options) if _is_selected(each, options)]
    if session.terminal.prints_data:
        from finetune_cli.data import to_data

        session.terminal.print_data(to_data(summaries))
        return
    if not summaries:
        where = "any namespace" if options.all_namespaces else f"namespace {session.client.namespace}"
        session.terminal.print_note(f"No runs found in {where}.")
        return
    namespace = ("NAMESPACE",) if options.all_namespaces or options.from_uri else ()
    rows = [[*((each.namespace,) if namespace else ()), *_build_row(each)] for each in summaries]
    session.terminal.print_table((*namespace, *_COLUMNS), rows)


def _collect_summaries(session: Session, options: ListOptions) -> list[RunSummary]:
    from finetune_operator.client import summarize_job, summarize_result

    jobs = session.client.jobs.list(all_namespaces=options.all_namespaces)
    in_cluster = [summarize_job(job) for job in jobs]
    if not options.from_uri:
        return in_cluster
    known = {each.adapter_uri.rstrip("/") for each in in_cluster}
    results = open_store(session).find_results(options.from_uri)
    in_store = [summarize_result(result) for result in results if result.uri.rstrip("/") not in known]
    return [*in_cluster, *sorted(in_store, key=lambda each: each.created_time, reverse=True)]


def _is_selected(summary: RunSummary, options: ListOptions) -> bool:
    has_phase = options.phase is None or summary.phase == options.phase
    return has_phase and (not options.owner or summary.owner == options.owner.rpartition("/")[2])


def _build_row(summary: RunSummary) -> tuple[str, ...]:
    from finetune_cli.ages import format_age

    loss = "" if summary.loss is None else f"{summary.loss:.4g}"
    return (
        summary.name, summary.phase, summary.reason, summary.completed, summary.remaining, loss, summary.duration,
        format_age(summary.created_time), summary.source if summary.source == "cluster" else summary.adapter_uri,
    )  # fmt: skip
