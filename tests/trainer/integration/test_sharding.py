"""Runs whose ranks share the base model: the same result as with a complete copy in each rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.trainer_process import TrainerRun, make_rows
from tests.support.trainer.worker_processes import WorkerGroup, make_group_factory, read_adapter

from finetune_trainer.contract import SHARDING_ENV

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

TRAINING = {
    "maxSteps": None,
    "epochs": 2,
    "batchSize": 2,
    "globalBatchSize": 8,
    "gradientAccumulation": 4,
    "lora": {"rank": 4},
    "learningRate": 2e-3,
}


@pytest.fixture
def make_group(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[..., WorkerGroup]:
    return make_group_factory(s3, tmp_path, forks)


@pytest.fixture
def dataset(s3: S3Server) -> dict[str, Any]:
    """Rows that two ranks cannot share evenly, and an odd number of rows for the validation."""
    held_out = [{"prompt": f"How far is {n}?", "completion": "Far."} for n in range(3)]
    s3.put("s3://data/held-out.jsonl", "".join(json.dumps(row) + "\n" for row in held_out).encode())
    s3.put("s3://data/uneven.jsonl", make_rows(18))
    return {
        "sources": [{"uri": "s3://data/uneven.jsonl"}],
        "validation": {"sources": [{"uri": "s3://data/held-out.jsonl"}]},
    }


def shard(group: WorkerGroup, changes: dict[str, Any]) -> WorkerGroup:
    for pod in group.pods:
        pod.environment |= {SHARDING_ENV: "full"}
        pod.changes = changes
    return group


def read_numbers(run: TrainerRun) -> dict[str, float]:
    names = ("trainLoss", "finalLoss", "steps", "tokens", "supervisedTokens", "baseEvalLoss", "evalLoss", "perplexity")
    metrics = run.read_metrics()
    return {name: metrics[name] for name in names}


def test_sharding_ranks_train_evaluate_and_publish_like_one_process(
    s3: S3Server, make_group: Callable[..., WorkerGroup], dataset: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"evaluation": {"task": "generation", "samplePrompts": ["How far is 1?"], "bias": {}}}
    plain = make_group("plain", 1, dataset=dataset)
    plain.rank_zero.changes = changes
    assert plain.run(**TRAINING) == [0], plain.logs
    for name, nodes in (("two", 2),):
        sharded = shard(make_group(name, nodes, dataset=dataset), changes)
        assert sharded.run(**TRAINING) == [0] * nodes, sharded.logs
        assert read_numbers(sharded.rank_zero) == pytest.approx(read_numbers(plain.rank_zero), abs=1e-5)
        expected, actual = read_adapter(s3, plain.rank_zero, tmp_path), read_adapter(s3, sharded.rank_zero, tmp_path)
        assert expected.keys() == actual.keys()
        assert max(float((expected[key] - actual[key]).abs().max()) for key in expected) < 1e-4
        assert sharded.rank_zero.read_metrics()["exactMatch"] == plain.rank_zero.read_metrics()["exactMatch"]
