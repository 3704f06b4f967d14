"""The cache returns only Jobs that the FineTuneJob owns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import build_key

from finetune_operator.kube.finetunejob_cache import FineTuneJobCache

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

KEY = build_key()
LABEL = {"finetune.dev/job": "bot"}
OWNER = {"kind": "FineTuneJob", "name": "bot", "uid": "uid-bot", "controller": True}

# How the Job's metadata differ, and whether it belongs to the FineTuneJob.
JOBS: dict[str, tuple[dict[str, Any], bool]] = {
    "its own": ({}, True),
    "of an earlier FineTuneJob with the same name": ({"ownerReferences": [{**OWNER, "uid": "uid-old"}]}, False),
    "without an owner, with its label": ({"ownerReferences": []}, False),
    "of another name, with its owner reference": ({"name": "other"}, False),
}


@pytest.mark.parametrize(("changes", "own"), JOBS.values(), ids=JOBS)
def test_cache_job_is_found_only_by_owner_uid(build: type[Builders], changes: dict[str, Any], own: bool) -> None:
    cache, job = FineTuneJobCache(), build.job()
    meta = {**job["metadata"], "labels": LABEL, "ownerReferences": [OWNER], **changes}
    cache.jobs.update(KEY, {**job, "metadata": meta})
    assert (cache.get_job(build.finetunejob()) is not None) == own
