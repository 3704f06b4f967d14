"""Requests of people are fields of `spec`: an annotation of ours changes nothing."""

from __future__ import annotations

from tests.support.operator.builders import build_finetunejob

from finetune_operator.api import FineTuneJob
from finetune_operator.api.run_policy import read_run_policy
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

ANNOTATIONS = {f"finetune.dev/{name}": "true" for name in ("suspend", "cancel", "retry", "stop", "skip-reconcile")}


def test_job_finetunejob_annotated_is_unchanged() -> None:
    plain, annotated = build_finetunejob(), build_finetunejob(annotations=ANNOTATIONS)
    jobs = [build_job(FineTuneJob.model_validate(body), Settings()) for body in (plain, annotated)]
    assert jobs[0] == jobs[1]
    assert read_run_policy(plain) == read_run_policy(annotated)
