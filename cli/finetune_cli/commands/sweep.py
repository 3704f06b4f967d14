"""`finetune sweep`: the trials of a FineTuneSweep, and the best of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from finetune_cli import views
from finetune_cli.session import Session

if TYPE_CHECKING:
    from finetune_operator.api.sweep import BestTrial, FineTuneSweep, TrialStatus

_LIST = "list"
_SHOW = "show"


def show_sweep(
    session: Session,
    action: Annotated[str, typer.Argument(metavar="NAME|list", help="Name of a FineTuneSweep, or `list`.")],
    name: Annotated[str | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Show the trials of a sweep with their values, and the best one; or list sweeps.

    A sweep with the name `list` is shown by `sweep show list`.
    """
    if action == _LIST and name is None:
        _list_sweeps(session)
        return
    if name is not None and action != _SHOW:
        raise typer.BadParameter(f"unexpected argument {name!r}")
    _show(session, name or action)


def _list_sweeps(session: Session) -> None:
    from finetune_operator.api.sweep import FineTuneSweep
    from finetune_operator.client.parsing import parse_object

    bodies = session.client.sweeps.list_bodies()
    if session.terminal.prints_data:
        session.terminal.print_data([views.remove_managed_fields(body) for body in bodies])
        return
    sweeps = [parse_object(FineTuneSweep, body) for body in bodies]
    session.terminal.print_table(
        ["NAME", "PHASE", "REASON", "TRIALS", "BEST", "VALUE", "VERDICT"], [_build_row(sweep) for sweep in sweeps]
    )


def _build_row(sweep: FineTuneSweep) -> list[str]:
    status = sweep.status
    if status is None:
        return [sweep.metadata.name, "", "", "", "", "", ""]
    best = status.best
    chosen = [best.name, views.format_number(best.value), best.verdict or ""] if best else ["", "", ""]
    return [sweep.metadata.name, status.phase or "", status.reason or "", status.counts.finished or "", *chosen]


def _show(session: Session, name: str) -> None:
    from finetune_operator.api.sweep import FineTuneSweep
    from finetune_operator.client.parsing import parse_object

    body = session.client.sweeps.get_body(name)
    if session.terminal.prints_data:
        session.terminal.print_data(views.remove_managed_fields(body))
        return
    sweep = parse_object(FineTuneSweep, body)
    session.terminal.print_fields(views.drop_empty(_build_fields(sweep)))
    if sweep.status:
        best = sweep.status.best
        session.terminal.print_line("")
        session.terminal.print_table(
            ["TRIAL", "PARAMETERS", "SEED", "STATE", sweep.spec.objective.metric.upper(), "GPU TIME"],
            [_build_trial_row(trial, best) for trial in sweep.status.trials],
        )


def _build_fields(sweep: FineTuneSweep) -> dict[str, str | None]:
    status = sweep.status
    if status is None:
        return {"sweep": sweep.metadata.name, "phase": "Pending"}
    best = status.best
    return {
        "sweep": sweep.metadata.name,
        "phase": f"{status.phase or 'Pending'} ({status.reason or 'TrialsPending'})",
        "trials": _describe_counts(sweep),
        "gpu time": views.format_seconds(status.gpu_seconds),
        "best": f"{best.name}: {best.parameters.describe()}" if best else None,
        "value": _describe_value(sweep.spec.objective.metric, best) if best else None,
        "verdict": f"{best.verdict or ''} {best.message}".strip() if best else None,
        "test": views.format_metrics(best.test) if best else None,
        "adapter": best.adapter_uri if best else None,
        "report": status.report_uri,
    }


def _describe_counts(sweep: FineTuneSweep) -> str:
    counts = sweep.status.counts if sweep.status else None
    if counts is None or not counts.total:
        return ""
    kinds = {"active": counts.active, "complete": counts.complete, "cut": counts.cut, "failed": counts.failed}
    described = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
    return f"{counts.finished or f'0/{counts.total}'} ended" + (f": {described}" if described else "")


def _describe_value(metric: str, best: BestTrial) -> str:
    deviation = f" ± {views.format_number(best.deviation)}" if best.deviation is not None else ""
    return f"{metric} {views.format_number(best.value)}{deviation}"


def _build_trial_row(trial: TrialStatus, best: BestTrial | None) -> list[str]:
    mark = " *" if best and best.configuration == trial.configuration else ""
    value = trial.value if trial.value is not None or not trial.steps else trial.steps[-1].eval_loss
    state = f"{_describe_state(trial)}{mark}"
    parameters = trial.parameters.describe()
    return [
        trial.name, parameters, str(trial.seed), state, views.format_number(value),
        views.format_seconds(trial.gpu_seconds),
    ]  # fmt: skip


def _describe_state(trial: TrialStatus) -> str:
    if trial.cut_at_step is not None:
        return f"cut at step {trial.cut_at_step}"
    if trial.phase in ("Failed", "Cancelled"):
        return f"{trial.phase} ({trial.reason})"
    return trial.phase or ("Pending" if trial.created else "not created")
