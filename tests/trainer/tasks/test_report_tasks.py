"""The reports as tasks: what a task pod reports, and what it needs for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.sweep_trials import draw_row_losses, make_task, make_trial, publish_trial
from tests.support.trainer.task_packages import block_missing_packages

from finetune_trainer.contract import (
    OUTCOME_MAX_BYTES,
    OUTCOME_PATH_ENV,
    TASK_CONFIG_ENV,
    Reason,
    StepResult,
    TaskOutcome,
    get_part_variable,
)
from finetune_trainer.tasks import runner

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

pytestmark = pytest.mark.s3
PART_CHARACTERS = 30_000
"""Characters of each environment variable with a part of the config."""


@pytest.fixture
def output(tmp_path: Path) -> str:
    return f"s3://results/{tmp_path.name}"


def set_task(monkeypatch: pytest.MonkeyPatch, s3: S3Server, name: str, task: dict[str, Any]) -> None:
    text = json.dumps({"storage": {"endpoint": s3.endpoint}, name: task})
    for index, start in enumerate(range(0, len(text), PART_CHARACTERS)):
        monkeypatch.setenv(get_part_variable(TASK_CONFIG_ENV, index), text[start : start + PART_CHARACTERS])


def test_task_sweep_report_writes_outcome_without_the_packages_of_the_trainer(
    s3: S3Server, output: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trials = [
        publish_trial(s3, output, make_trial(number, value), draw_row_losses(value, 30, 0.01, number))
        for number, value in ((1, 1.2), (2, 1.4))
    ]
    set_task(monkeypatch, s3, "sweepReport", make_task(output, trials, [1, 2]).to_json())
    monkeypatch.setenv(OUTCOME_PATH_ENV, str(tmp_path / "outcome"))
    program = block_missing_packages(
        "import finetune_trainer.__main__ as main, finetune_trainer.evaluation.classification\n"
        "main.os._exit = sys.exit; sys.argv[1:] = ['task']; main.main()"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    outcome = TaskOutcome.model_validate_json((tmp_path / "outcome").read_text())
    assert (process.returncode, outcome.reason) == (0, Reason.COMPLETED), process.stderr
    assert outcome.message == "wrote the report of 2 trials"
    assert outcome.sweep_report
    assert outcome.sweep_report.verdict == "Better"


def test_task_sweep_report_of_a_hundred_trials_fits_into_the_environment(
    s3: S3Server, output: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = [StepResult(step=step, eval_loss=1 / 3) for step in range(100, 900, 100)]
    uri = "s3://results/" + "a" * 1000
    trials = [make_trial(number, None, steps=steps, adapter_uri=uri) for number in range(1, 101)]
    set_task(monkeypatch, s3, "sweepReport", make_task(output, trials, []).to_json())
    monkeypatch.setenv(OUTCOME_PATH_ENV, str(tmp_path / "outcome"))
    program = "import finetune_trainer.tasks.runner as runner; runner.write_outcome(runner.run_task())"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert "wrote the report of 100 trials" in (tmp_path / "outcome").read_text()


def test_task_schedule_report_names_the_page(s3: S3Server, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"run": "bot-1", "trigger": "Schedule", "scheduledTime": "2026-11-23T03:00:00Z", "phase": "Complete"}
    task = {"reportURI": f"{output}/champion.json.html", "schedule": "support/bot", "rows": [row]}
    set_task(monkeypatch, s3, "scheduleReport", task)
    outcome = runner.run_task()
    assert outcome.message == "wrote the report of 1 run"
    assert outcome.schedule_report
    assert outcome.schedule_report.report_uri == f"{output}/champion.json.html"
    assert b"bot-1" in s3.get(f"{output}/champion.json.html")


def test_task_sweep_report_largest_outcome_fits_the_termination_message(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = f"s3://results/{tmp_path.name}/" + "/".join(["x" * 200] * 4)
    name = "n" * 50
    trials = [make_trial(number, 1.0, name=f"{name}-{number}") for number in (1, 2)]
    metrics = {f"test{index}{'m' * 59}": -0.1234567890123456e-100 for index in range(9)}
    trials = [publish_trial(s3, output, trial, draw_row_losses(1, 30, 0.1, 1), **metrics) for trial in trials]
    set_task(monkeypatch, s3, "sweepReport", make_task(output, trials, [1, 2]).to_json())
    outcome = runner.run_task()
    assert outcome.sweep_report
    assert len(outcome.sweep_report.test) == 8
    assert len(outcome.model_dump_json(by_alias=True, exclude_none=True).encode()) <= OUTCOME_MAX_BYTES
