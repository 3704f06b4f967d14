"""`finetune schedule`: the runs and the champion of a FineTuneSchedule, and `schedule run`, which requests a run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_cli import views
from finetune_cli.gitops import warn_of_gitops
from finetune_cli.session import Session

if TYPE_CHECKING:
    from finetune_operator.api.schedule import FineTuneSchedule, ScheduledRun

_LIST, _SHOW, _RUN = "list", "show", "run"


def show_schedule(
    session: Session,
    action: Annotated[
        str, typer.Argument(metavar="NAME|list|run", help="Name of a FineTuneSchedule, `list`, or `run` and a name.")
    ],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name of the schedule to run now.")] = None,
) -> None:
    """Show the runs of a schedule, its champion and its next time; list schedules; or `schedule run NAME`: run now.

    A schedule with the name `list` or `run` is shown by `schedule show run`.
    """
    if name is None and action == _LIST:
        _list_schedules(session)
    elif name is None and action == _RUN:
        raise typer.BadParameter("name the schedule: `schedule run NAME`, or `schedule show run` to show one named run")
    elif name is None:
        _show(session, action)
    elif action == _RUN:
        _request_run(session, name)
    elif action == _SHOW:
        _show(session, name)
    else:
        raise typer.BadParameter(f"unexpected argument {name!r}")


def _list_schedules(session: Session) -> None:
    from finetune_operator.api.schedule import FineTuneSchedule
    from finetune_operator.client.parsing import parse_object

    bodies = session.client.schedules.list_bodies()
    if session.terminal.prints_data:
        session.terminal.print_data([views.remove_managed_fields(body) for body in bodies])
        return
    schedules = [parse_object(FineTuneSchedule, body) for body in bodies]
    session.terminal.print_table(
        ["NAME", "SCHEDULE", "STATE", "NEXT", "LAST RUN", "DECISION", "CHAMPION"],
        [_build_row(schedule) for schedule in schedules],
    )


def _build_row(schedule: FineTuneSchedule) -> list[str]:
    status, spec = schedule.status, schedule.spec
    head = [schedule.metadata.name, spec.schedule or "", describe_state(schedule)]
    if status is None:
        return [*head, "", "", "", ""]
    last = status.runs[0] if status.runs else None
    champion = status.champion.run if status.champion else ""
    return [
        *head, status.next_schedule_time or "", last.name if last else "", (last.decision or "") if last else "",
        champion,
    ]  # fmt: skip


def describe_state(schedule: FineTuneSchedule) -> str:
    """Return `Active`, `Suspended`, or the reason for which the schedule is `Stalled`."""
    stalled = views.find_condition(schedule.status.conditions if schedule.status else [], "Stalled")
    if stalled and stalled.status == "True":
        return stalled.reason
    return "Suspended" if schedule.spec.suspend else "Active"


def _show(session: Session, name: str) -> None:
    from finetune_operator.api.schedule import FineTuneSchedule
    from finetune_operator.client.parsing import parse_object

    body = session.client.schedules.get_body(name)
    if session.terminal.prints_data:
        session.terminal.print_data(views.remove_managed_fields(body))
        return
    schedule = parse_object(FineTuneSchedule, body)
    session.terminal.print_fields(views.drop_empty(_build_fields(schedule)))
    if schedule.status:
        session.terminal.print_line("")
        session.terminal.print_table(
            ["RUN", "FOR", "TIME", "PHASE", "DECISION", "COMPARED WITH", "METRICS"],
            [_build_run_row(run) for run in schedule.status.runs],
        )


def _build_fields(schedule: FineTuneSchedule) -> dict[str, str | None]:
    spec, status, changes = schedule.spec, schedule.status, schedule.spec.on_data_change
    fields: dict[str, str | None] = {
        "schedule": schedule.metadata.name,
        "times": f"{spec.schedule} ({spec.time_zone})" if spec.schedule else None,
        "on data change": f"checked every {changes.check_interval_seconds} s" if changes else None,
        "state": describe_state(schedule),
    }
    if status is None:
        return fields
    champion, last = status.champion, status.runs[0] if status.runs else None
    return fields | {
        "next time": None if spec.suspend else status.next_schedule_time,
        "champion": f"{champion.run} ({champion.reason} {champion.promoted_time})" if champion else None,
        "adapter": champion.adapter_uri if champion else None,
        "pinned": f"to {spec.champion.run}, by spec.champion" if spec.champion else None,
        "alias": status.alias_uri,
        "alias conflict": status.alias_conflict,
        "stalled": _describe_stalled(schedule),
        "up to date": views.format_condition(status.conditions, "UpToDate"),
        "last decision": f"{last.name}: {last.decision or 'not decided yet'}. {last.message}".strip() if last else None,
        "report": status.report_uri,
    }


def _describe_stalled(schedule: FineTuneSchedule) -> str:
    stalled = views.find_condition(schedule.status.conditions if schedule.status else [], "Stalled")
    return stalled.message if stalled and stalled.status == "True" else ""


def _build_run_row(run: ScheduledRun) -> list[str]:
    phase = f"{run.phase} ({run.reason})" if run.phase == "Failed" else run.phase or "active"
    return [
        run.name, run.trigger, run.scheduled_time, phase, run.decision or "", run.champion or "",
        views.format_metrics(run.metrics),
    ]  # fmt: skip


def _request_run(session: Session, name: str) -> None:
    warn_of_gitops(session, "schedule", name, session.client.schedules.get_body(name), "spec.runAt")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    schedule = session.client.schedules.patch_spec(name, {"runAt": now})
    session.terminal.print_line(f"schedule {name}: a run is requested for {now}")
    if schedule.spec.suspend:
        session.terminal.print_note(f"schedule {name} is suspended: the run is created when spec.suspend is false")
