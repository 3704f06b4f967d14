"""The task that finds out whether data has changed agrees with a run on data that is laid out in any way."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from tests.trainer.tasks.test_check_inputs import ROWS, Project

from finetune_trainer.contract import InputsReport, Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

    from finetune_trainer.storage import S3

pytestmark = pytest.mark.s3
T = TypeVar("T")

NAMES = [
    *("rows/a.jsonl", "rows/b.csv", "rows/sub/c.jsonl", "rows/sub/deep/d.json.gz", "rows/e", "rows/ä b+c%.jsonl"),
    *("rows/_SUCCESS", "rows/.f.jsonl", "rows/sub/_temporary/g.jsonl", "rows/README.md", "rows/h.txt", "rows/day=1/i"),
    *("rows/bot-1/adapter_config.json", "rows/bot-1/evaluation.jsonl", "rows/bot-1/.upload.json"),
    *("rows/bot-2/evaluation.jsonl", "rows/bot-2/.failed/x/run.jsonl", "rows/bot-22/j.jsonl", "held-out/v.jsonl"),
    *("rows/bot-3/.upload.json", "rows/bot-3/evaluation.jsonl", "test/t.jsonl", "test/bot-2/u.jsonl"),
]
URIS = [
    *("rows/", "rows/sub/", "rows/*.jsonl", "rows/**/*.jsonl", "rows/**", "rows/s*/", "rows/?", "rows/a.jsonl", "test/")
]
PAIRS = ["rows/pairs.csv", "rows/a.jsonl", "test/t.jsonl", "held-out/v.jsonl"]


def arrange_inputs(project: Project, choices: random.Random) -> None:
    """Write some of the files, and read them from some of the locations."""
    for name in choices.sample(NAMES, choices.randint(len(NAMES) // 2, len(NAMES))):
        project.put(name, ROWS * choices.randint(0, 3))
    pairs = choices.choice(PAIRS)
    project.put(pairs, ROWS)
    sources, validation, test = (
        [{"uri": f"{project.root}/{uri}"} for uri in choices.sample(URIS, count)] for count in (2, 1, 1)
    )
    project.spec["dataset"] = {"sources": sources, "validation": {"sources": validation}}
    project.spec["evaluation"]["test"] = {"sources": test}
    project.spec["evaluation"]["bias"] = {"pairsURI": f"{project.root}/{pairs}"}


def change_inputs(project: Project, choices: random.Random) -> None:
    """Write or delete up to two files that are no sentence pairs."""
    names = [name for name in NAMES if not project.spec["evaluation"]["bias"]["pairsURI"].endswith(f"/{name}")]
    for name in choices.sample(names, choices.randint(0, 2)):
        if choices.random() < 0.3:
            project.delete(name)
        else:
            project.put(name, ROWS * choices.randint(0, 3))


def attempt(call: Callable[[], T]) -> T | Reason:
    """Return the result of a call, or the reason of its error."""
    try:
        return call()
    except TrainerError as error:
        return error.reason


@pytest.mark.parametrize("seed", range(30))
def test_check_inputs_layout_is_judged_as_by_a_run(s3: S3Server, s3_client: S3, tmp_path: Path, seed: int) -> None:
    choices = random.Random(seed)
    project = Project(s3, s3_client, tmp_path)
    arrange_inputs(project, choices)
    problem, before = attempt(project.publish), attempt(project.check)
    if not isinstance(before, InputsReport):
        assert before is problem
        return
    assert problem is None
    assert (before.unchanged, before.added_bytes, before.removed_files) == (True, 0, 0)
    change_inputs(project, choices)
    after = attempt(project.check)
    found = after.unchanged if isinstance(after, InputsReport) else after
    assert found is attempt(project.is_unchanged_for_a_run)
    if isinstance(after, InputsReport):
        assert (after.digest == before.digest) is after.unchanged
        assert after.unchanged or after.added_bytes or after.removed_files
