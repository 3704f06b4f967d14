"""The pages. Starlette calls these functions in threads, because the client waits for the cluster and the store."""

from __future__ import annotations

from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from finetune_cli.ui.rendering import read_static, render
from finetune_cli.ui.security import REPORT_POLICY
from finetune_cli.ui.source import Comparable, Fetched, PastRun, Run, Source
from finetune_cli.ui.views.comparison import (
    Choice,
    build_comparison,
    build_comparison_context,
    build_result_context,
    get_key,
    list_choices,
    preset_choices,
)
from finetune_cli.ui.views.run import build_run_context
from finetune_cli.ui.views.runs import RunFilter, build_runs_context
from finetune_cli.ui.views.schedules import build_schedule_context
from finetune_cli.ui.views.sweeps import build_sweep_context
from finetune_operator.api.schedule import FineTuneSchedule
from finetune_operator.api.sweep import FineTuneSweep
from finetune_operator.client import ClientError

OwnerT = TypeVar("OwnerT", FineTuneSchedule, FineTuneSweep)


class Pages:
    """The functions of the routes."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def show_runs(self, request: Request) -> Response:
        """Show the runs."""
        fetched = self._source.list_runs()
        context = build_runs_context(fetched.value, RunFilter.parse(request.query_params))
        return render("runs", active="runs", problems=fetched.problems, **context)

    def show_run(self, request: Request) -> Response:
        """Show a run."""
        run = self._find_run(request)
        events = self._source.list_events(run.summary.namespace, run.summary.name, "FineTuneJob")
        context = build_run_context(run, self._source.get_losses(run.job))
        return render("run", active="runs", problems=[], events=events, key=get_key(run), **context)

    def show_log(self, request: Request) -> Response:
        """Show the end of a run's log."""
        run = self._find_run(request)
        log = self._source.read_log(run.job)
        back = f"/runs/{run.summary.namespace}/{run.summary.name}"
        return render("log", active="runs", problems=log.problems, run=run.summary, lines=log.value, back=back)

    def show_report(self, request: Request) -> Response:
        """Show the report of a run, isolated from the other pages."""
        return _isolate(self._source.read_report(self._find_run(request).job))

    def compare(self, request: Request) -> Response:
        """Compare the two runs of the query, or let the user choose them."""
        runs, history = self._source.list_runs(), self._source.list_history()
        choices = list_choices(runs.value, history.value)
        chosen = request.query_params.getlist("run")
        problems = [*runs.problems, *history.problems]
        preset = preset_choices(chosen, list(choices))
        context = {"active": "compare", "choices": list(choices.values()), "preset": preset, "comparison": None}
        unknown = [key for key in chosen if key not in choices]
        if len(chosen) == 2 and not unknown:
            try:
                comparison = build_comparison(*(self._read_comparable(choices[key]) for key in chosen))
                return render("compare", problems=problems, **(context | build_comparison_context(comparison)))
            except ClientError as error:
                problems.append(str(error))
        problems += [f"Run {key} has no result, or does not exist any more." for key in unknown]
        return render("compare", problems=problems, **context)

    def show_schedules(self, _request: Request) -> Response:
        """Show the schedules."""
        fetched = self._source.list_schedules()
        return render("schedules", active="schedules", problems=fetched.problems, schedules=fetched.value)

    def show_schedule(self, request: Request) -> Response:
        """Show a schedule."""
        schedule = _find(self._source.list_schedules(), request)
        events = self._source.list_events(schedule.metadata.namespace, schedule.metadata.name, "FineTuneSchedule")
        context = build_schedule_context(schedule)
        return render("schedule", active="schedules", problems=[], events=events, **context)

    def show_schedule_report(self, request: Request) -> Response:
        """Show the page that the schedule has written to the store."""
        schedule = _find(self._source.list_schedules(), request)
        uri = schedule.status.report_uri if schedule.status else None
        return self._show_stored_page(schedule, uri)

    def show_sweeps(self, _request: Request) -> Response:
        """Show the sweeps."""
        fetched = self._source.list_sweeps()
        return render("sweeps", active="sweeps", problems=fetched.problems, sweeps=fetched.value)

    def show_sweep(self, request: Request) -> Response:
        """Show a sweep."""
        sweep = _find(self._source.list_sweeps(), request)
        events = self._source.list_events(sweep.metadata.namespace, sweep.metadata.name, "FineTuneSweep")
        return render("sweep", active="sweeps", problems=[], events=events, **build_sweep_context(sweep))

    def show_sweep_report(self, request: Request) -> Response:
        """Show the report of a sweep."""
        sweep = _find(self._source.list_sweeps(), request)
        return self._show_stored_page(sweep, sweep.status.report_uri if sweep.status else None)

    def show_history(self, request: Request) -> Response:
        """Show the results below the prefixes."""
        fetched = self._source.list_history()
        text = request.query_params.get("text", "").strip()
        words = text.lower().split()
        shown = [each for each in fetched.value if all(word in _describe(each) for word in words)]
        return render(
            "history",
            active="history",
            problems=fetched.problems,
            prefixes=self._source.prefixes,
            results=shown,
            total=len(fetched.value),
            text=text,
        )

    def show_result(self, request: Request) -> Response:
        """Show a result without a FineTuneJob."""
        return render("result", active="history", problems=[], **build_result_context(self._find_result(request)))

    def show_stored_log(self, request: Request) -> Response:
        """Show the end of the log beside a result."""
        past_run = self._find_result(request)
        log = self._source.read_stored_log(past_run)
        return render(
            "log", active="history", problems=log.problems, run=past_run.summary, lines=log.value, back="/history"
        )

    def show_stored_report(self, request: Request) -> Response:
        """Show the report of a result, isolated from the other pages."""
        return _isolate(self._source.read_stored_report(self._find_result(request)))

    def send_static(self, request: Request) -> Response:
        """Send the style sheet, the script or the icon."""
        response = read_static(request.path_params["name"])
        if response is None:
            raise HTTPException(404, "There is no such file.")
        return response

    def _find_run(self, request: Request) -> Run:
        fetched = self._source.list_runs()
        namespace, name = request.path_params["namespace"], request.path_params["name"]
        for run in fetched.value:
            if (run.summary.namespace, run.summary.name) == (namespace, name):
                return run
        raise _not_found(fetched, f"run {name} in namespace {namespace}. Its result may be in the history")

    def _find_result(self, request: Request) -> PastRun:
        """Return the result of the query. Only results of the history are read."""
        fetched = self._source.list_history()
        uri = request.query_params.get("uri", "")
        for past_run in fetched.value:
            if past_run.result.uri == uri:
                return past_run
        raise _not_found(fetched, f"result {uri} below the prefixes of the history")

    def _read_comparable(self, choice: Choice) -> Comparable:
        if isinstance(choice.run, Run):
            return self._source.get_comparable(choice.run.job)
        return self._source.get_stored_comparable(choice.run)

    def _show_stored_page(self, owner: FineTuneSchedule | FineTuneSweep, uri: str | None) -> Response:
        if uri is None:
            raise HTTPException(404, f"{owner.metadata.name} has no report yet.")
        return _isolate(self._source.read_page(owner.spec.template.spec.storage, uri))


def _find(fetched: Fetched[list[OwnerT]], request: Request) -> OwnerT:
    namespace, name = request.path_params["namespace"], request.path_params["name"]
    for owner in fetched.value:
        if (owner.metadata.namespace, owner.metadata.name) == (namespace, name):
            return owner
    raise _not_found(fetched, f"{name} in namespace {namespace}")


def _not_found(fetched: Fetched[list[Run]] | Fetched[list[PastRun]] | Fetched[list[OwnerT]], what: str) -> Exception:
    """Return the error of a page whose object was not found, or could not be read."""
    if fetched.problems and not fetched.value:
        return ClientError(fetched.problems[0])
    return HTTPException(404, f"There is no {what}.")


def _describe(past_run: PastRun) -> str:
    summary = past_run.summary
    return f"{summary.namespace}/{summary.name} {summary.model_uri} {past_run.result.uri}".lower()


def _isolate(content: bytes) -> Response:
    """Return a page from the store, which anyone who may write there has written."""
    return HTMLResponse(content, headers={"content-security-policy": REPORT_POLICY})


def show_error(_request: Request, error: Exception) -> Response:
    """Show why a page cannot be shown."""
    if isinstance(error, HTTPException):
        return render("error", error.status_code, active="", problems=[], message=error.detail)
    if isinstance(error, ClientError):
        return render("error", 502, active="", problems=[], message=str(error))
    message = "This page has a bug. The terminal of finetune ui has the details."
    return render("error", 500, active="", problems=[], message=message)
