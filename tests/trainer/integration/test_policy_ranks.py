"""Several ranks generate and learn together, and resume where they were stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.worker_processes import WorkerGroup, make_group_factory

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(900)]

GRADERS = [{"name": "long", "length": {"minimum": 14, "unit": "characters"}}]
TRAINING: dict[str, Any] = {
    "method": "grpo", "maxSteps": 4, "batchSize": 2, "gradientAccumulation": 2, "rewards": [{"grader": "long"}],
    "rollout": {"generations": 4, "maxNewTokens": 6}, "lora": {"rank": 4},
}  # fmt: skip


@pytest.fixture
def workers(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[..., WorkerGroup]:
    return make_group_factory(s3, tmp_path, forks)


def test_two_ranks_share_the_answers_to_a_prompt(s3: S3Server, workers: Callable[..., WorkerGroup]) -> None:
    rows = [{"prompt": f"Say {n}."} for n in range(8)]
    s3.put("s3://data/ranks.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    dataset = {"sources": [{"uri": "s3://data/ranks.jsonl"}]}
    group = workers("policy", 2, dataset=dataset)
    for pod in group.pods:
        pod.changes = {"evaluation": {"graders": GRADERS}}
    assert group.run(**TRAINING) == [0, 0], group.logs
    metrics = group.rank_zero.read_metrics()
    assert metrics["steps"] == 4
    # Eight answers in each step, of one to six tokens, on two ranks.
    assert 4 * 8 <= metrics["supervisedTokens"] <= 4 * 8 * 6
    rewards = json.loads(s3.get(f"{group.rank_zero.output}/evaluation.json"))["rewards"]
    assert [point["step"] for point in rewards] == [1, 2, 3, 4]
