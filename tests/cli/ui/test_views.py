"""View models and caches, without a server."""

from __future__ import annotations

import shlex
import threading
from datetime import UTC, datetime

import pytest
from tests.support.operator.builders import build_finetunejob
from tests.support.ui.cluster_objects import build_complete_status, build_live_status, build_sweep
from typer.core import TyperGroup
from typer.main import get_command

from finetune_cli.app import build_app
from finetune_cli.ui.cache import TimedCache
from finetune_cli.ui.losses import MAX_POINTS, LossHistory
from finetune_cli.ui.source import Run
from finetune_cli.ui.views.run import list_commands
from finetune_cli.ui.views.runs import PAGE_SIZE, RunFilter, build_runs_context
from finetune_cli.ui.views.settings import list_settings
from finetune_cli.ui.views.sweeps import rank_trials
from finetune_cli.ui.views.times import format_age
from finetune_operator.api import FineTuneJob
from finetune_operator.api.sweep import FineTuneSweepStatus
from finetune_operator.client import ClusterUnavailable, RunSummary, summarize_job

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def make_run(name: str = "bot", **fields: str) -> Run:
    return Run(make_job(), RunSummary(name, fields.pop("namespace", "team"), "cluster", "Running", **fields))  # type: ignore[arg-type]


def make_job(status: dict[str, object] | None = None) -> FineTuneJob:
    return FineTuneJob.model_validate(build_finetunejob() | ({"status": status} if status else {}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23T07:59:55Z", "now"),
        ("2026-11-23T07:55:00Z", "5 min ago"),
        ("2026-11-23T11:00:00Z", "in 3 h"),
        ("2026-11-20T08:00:00+00:00", "3 d ago"),
        ("<b>never</b>", "<b>never</b>"),
    ],
)
def test_format_age_time_or_text_is_readable(text: str, expected: str) -> None:
    assert format_age(text, NOW) == expected


def test_run_filter_query_is_kept_in_links() -> None:
    query = RunFilter.parse({"text": " a&b ", "phase": "Failed", "page": "3", "sort": "unknown"})
    assert query.link(sort="loss") == "/?text=a%26b&phase=Failed&sort=loss"
    assert RunFilter.parse({"page": "-1"}).page == RunFilter.parse({"page": "²"}).page == 1


def test_run_filter_words_must_all_occur() -> None:
    run = make_run("bot-1", owner="nightly", method="sft")
    assert RunFilter(text="NIGHT bot").accepts(run.summary)
    assert not RunFilter(text="night other").accepts(run.summary)
    assert not RunFilter(method="dpo").accepts(run.summary)


def test_runs_page_after_the_last_shows_the_last() -> None:
    context = build_runs_context([make_run(f"r{index}") for index in range(PAGE_SIZE + 1)], RunFilter(page=99))
    assert (context["page"], len(context["runs"])) == (2, 1)


def test_settings_only_changed_fields_are_listed() -> None:
    assert list_settings(make_job().spec) == [
        ("model.uri", "hf://org/name"),
        ("dataset.sources[0].uri", "s3://bucket/data.jsonl"),
        ("training.epochs", "1"),
        ("output.uri", "s3://bucket/adapters/{namespace}/{name}"),
    ]


def test_commands_hostile_uri_is_quoted() -> None:
    status = build_complete_status("bot")
    status["result"]["adapterURI"] = "s3://b/$(reboot)"
    job = make_job(status)
    commands = dict(list_commands(Run(job, summarize_job(job))))
    assert commands["List its files"] == "aws s3 ls --recursive 's3://b/$(reboot)'/"


@pytest.mark.parametrize("phase", ["Complete", "Running", "Suspended"])
def test_commands_of_each_phase_are_accepted(phase: str) -> None:
    status = build_complete_status("bot") if phase == "Complete" else {"phase": phase}
    job = make_job(status)
    group = get_command(build_app())
    assert isinstance(group, TyperGroup)
    texts = [text for _, text in list_commands(Run(job, summarize_job(job))) if text.startswith("finetune ")]
    assert texts
    for _, name, *arguments in map(shlex.split, texts):
        group.commands[name].make_context(name, arguments)  # raises for wrong arguments


def test_sweep_trials_lowest_loss_is_first_and_unfinished_are_last() -> None:
    _, status = build_sweep("http://store")
    trials = rank_trials(FineTuneSweepStatus.model_validate(status).trials, "evalLoss")
    assert [trial.name for trial in trials[:2]] == ["rates-5", "rates-4"]
    assert rank_trials(trials, "accuracy")[0].name == "rates-1"
    assert trials[-1].value is None


def test_loss_history_many_steps_stays_bounded() -> None:
    history = LossHistory()
    for step in range(1, MAX_POINTS * 2):
        history.record(make_job(build_live_status(step % 400) | {"progress": _progress(step)}))
    points = history.get_curves(make_job()).training_losses
    assert MAX_POINTS / 2 <= len(points) <= MAX_POINTS
    assert points[0].step == 1


def _progress(step: int) -> dict[str, object]:
    return {"percentage": 1, "step": step, "loss": 1 / step, "lastUpdateTime": "2026-11-23T08:00:00Z"}


def test_cache_many_threads_load_once_until_expiry() -> None:
    now, loads = [0.0], []
    cache: TimedCache[int] = TimedCache(lambda: now[0])
    barrier = threading.Barrier(8)

    def read() -> None:
        barrier.wait()
        cache.get(("runs",), lambda: loads.append(1) or len(loads), 2)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    now[0] = 2.0
    assert cache.get(("runs",), lambda: 7, 2) == 7


def test_cache_error_is_raised_again_and_then_retried() -> None:
    now, attempts = [0.0], []
    cache: TimedCache[int] = TimedCache(lambda: now[0])

    def fail() -> int:
        attempts.append(1)
        raise ClusterUnavailable("the API server does not respond")

    for _ in range(3):
        with pytest.raises(ClusterUnavailable):
            cache.get(("runs",), fail, 60)
    assert len(attempts) == 1
    now[0] = 3.0
    assert cache.get(("runs",), lambda: 1, 60) == 1
