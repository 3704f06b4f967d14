"""Tests of runs that are stopped, killed or get other data: the step they resume from, and the result."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.tiny_model import CHATML
from tests.support.trainer.trainer_process import STEPS, TrainerRun, make_rows, make_run_factory

from finetune_trainer.contract import RUN_ID_ENV, STOP_SECONDS_ENV, TEMPLATE_DATE_ENV, Reason

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], TrainerRun]:
    return make_run_factory(s3, tmp_path, forks.build_model)


DATED_CHATML = "{{ strftime_now('%d %b') }} {{ mood }} " + CHATML
COMPARED = ("trainLoss", "finalLoss", "steps", "tokens", "supervisedTokens")


def test_resume_after_sigterm_matches_uninterrupted_run(
    s3: S3Server, pods: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    uninterrupted, interrupted = pods("whole"), pods("parted")
    assert forks.run(uninterrupted) is Reason.COMPLETED, uninterrupted.log
    assert not [key for key in s3.list_keys(uninterrupted.output) if "/." in key]  # neither checkpoint nor claim

    child = forks.start(interrupted, checkpoints={"everySteps": 1000})
    interrupted.wait_for_log("step 6/")
    for _ in range(2):
        os.kill(child, signal.SIGTERM)
    assert (forks.wait(child), interrupted.outcome.reason) == (143, Reason.PREEMPTED), interrupted.log
    assert interrupted.outcome.progress
    stopped_at = interrupted.outcome.progress.last_checkpoint_step
    assert stopped_at
    before = interrupted.read_losses()
    assert max(before) <= stopped_at <= STEPS
    assert any("step-" in key and key.endswith("/checkpoint.json") for key in s3.list_keys(interrupted.output))

    assert forks.run(interrupted) is Reason.COMPLETED, interrupted.log
    assert f"resuming from step {stopped_at}" in interrupted.log
    assert min(interrupted.read_losses()) == stopped_at + 1
    together = before | interrupted.read_losses()
    assert len(together) == STEPS
    assert together == uninterrupted.read_losses()
    assert [interrupted.read_metrics()[name] for name in COMPARED] == pytest.approx(
        [uninterrupted.read_metrics()[name] for name in COMPARED]
    )
    assert not [key for key in s3.list_keys(interrupted.output) if "/." in key]


def test_resume_new_run_of_same_output_uses_checkpoint(
    s3: S3Server, pods: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    """`kubectl delete` and `kubectl apply` of the same file on the next day, in the middle of training."""
    job = pods("job")
    job.changes["model"] = {"chatTemplate": DATED_CHATML, "chatTemplateArguments": {"mood": "calm"}}
    job.environment[TEMPLATE_DATE_ENV] = "2026-02-01"
    forks.run_until(job, "step 6/", signal.SIGTERM)
    assert job.outcome.reason is Reason.PREEMPTED, job.log
    saved = job.outcome.progress.last_checkpoint_step if job.outcome.progress else None
    assert saved
    assert not [key for key in s3.list_keys(job.output) if key.endswith(".claim.json")]
    job.environment |= {RUN_ID_ENV: "uid-of-the-next", TEMPLATE_DATE_ENV: "2026-02-02"}
    assert forks.run(job) is Reason.COMPLETED, job.log
    assert "another run holds" not in job.log
    assert f"resuming from step {saved}" in job.log
    assert min(job.read_losses()) == saved + 1
    assert "the chat template can write the current date: rows and prompts then have 2026-02-01" in job.log
    manifest, published_template, card = (
        s3.get(f"{job.output}/{name}").decode() for name in ("manifest.json", "chat_template.jinja", "README.md")
    )
    assert json.loads(manifest)["templateDate"] == "2026-02-01"
    assert published_template == ('{% if mood is not defined %}{% set mood = "calm" %}{% endif %}\n' + DATED_CHATML), (
        "servers write their own date"
    )
    assert "| Chat template arguments | mood: calm |" in card
    assert "| Date in the chat template | 2026-02-01 |" in card


def test_resume_changed_data_starts_fresh(s3: S3Server, pods: Callable[[str], TrainerRun], forks: ForkServer) -> None:
    job = pods("job")
    forks.run_until(job, "stored step 5 in", signal.SIGKILL)
    s3.put("s3://data/resume.jsonl", make_rows(17))
    assert forks.run(job, maxSteps=STEPS) is Reason.COMPLETED, job.log
    assert ": the data has changed since" in job.log
    assert min(job.read_losses()) == 1


def test_stop_save_timeout_ends_preempted(
    pods: Callable[[str], TrainerRun], forks: ForkServer, proxy: FaultyProxy
) -> None:
    job = pods("job")
    job.environment |= {STOP_SECONDS_ENV: "2"} | {name: os.environ[name] for name in ("http_proxy", "HTTP_PROXY")}
    job.environment |= {"no_proxy": "", "NO_PROXY": ""}
    proxy.stalled_key = "optimizer.pt"
    status = forks.run_until(job, "step 3/", signal.SIGTERM, checkpoints={"everySteps": 1000})
    assert (status, job.outcome.reason) == (143, Reason.PREEMPTED), job.log
    assert "no checkpoint could be saved within 2 s" in job.outcome.message
