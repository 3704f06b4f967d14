"""Runs whose ranks share the base model: the same result as with a complete copy in each rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.trainer_process import TrainerRun, make_rows
from tests.support.trainer.worker_processes import WorkerGroup, make_group_factory, read_adapter

from finetune_trainer.contract import SHARDING_ENV, SUSPEND_AT_STEP_ENV, Reason

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
    """Rows that two ranks cannot share evenly, and rows for the validation of which one rank has more batches."""
    held_out = [{"prompt": f"How far is {n}?", "completion": "Near." if n % 2 else "So far." * 9} for n in range(5)]
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
    s3: S3Server, make_group: Callable[..., WorkerGroup], dataset: dict[str, Any]
) -> None:
    changes = {"evaluation": {"task": "generation", "samplePrompts": ["How far is 1?"], "bias": {}}}
    plain = make_group("plain", 1, dataset=dataset)
    plain.rank_zero.changes = changes
    assert plain.run(**TRAINING) == [0], plain.logs
    for name, nodes in (("single", 1), ("two", 2)):
        sharded = shard(make_group(name, nodes, dataset=dataset), changes)
        assert sharded.run(**TRAINING) == [0] * nodes, sharded.logs
        assert read_numbers(sharded.rank_zero) == pytest.approx(read_numbers(plain.rank_zero), abs=1e-5)
        expected, actual = read_adapter(s3, plain.rank_zero), read_adapter(s3, sharded.rank_zero)
        assert expected.keys() == actual.keys()
        assert max(float((expected[key] - actual[key]).abs().max()) for key in expected) < 1e-4
        assert sharded.rank_zero.read_metrics()["exactMatch"] == plain.rank_zero.read_metrics()["exactMatch"]


def test_sharding_suspended_run_is_resumed_by_one_complete_copy(
    make_group: Callable[..., WorkerGroup], dataset: dict[str, Any]
) -> None:
    sharded = shard(make_group("run", 2, dataset=dataset), {})
    for pod in sharded.pods:
        pod.environment |= {SUSPEND_AT_STEP_ENV: "3"}
    assert sharded.run(**TRAINING) == [Reason.STEP_REACHED.exit_code] * 2, sharded.logs
    resumed, uninterrupted = make_group("run", 1, dataset=dataset), make_group("whole", 1, dataset=dataset)
    assert resumed.run(**TRAINING) == [0], resumed.logs
    assert "resuming from step 3" in resumed.logs
    assert uninterrupted.run(**TRAINING) == [0], uninterrupted.logs
    assert read_numbers(resumed.rank_zero) == pytest.approx(read_numbers(uninterrupted.rank_zero), abs=1e-5)


def test_sharding_ranks_train_on_preferences_like_one_process(
    s3: S3Server, make_group: Callable[..., WorkerGroup]
) -> None:
    pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(13)]
    for name, rows in (("pairs", pairs[:8]), ("held-out-pairs", pairs[8:])):
        s3.put(f"s3://data/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    dataset = {
        "sources": [{"uri": "s3://data/pairs.jsonl"}],
        "validation": {"sources": [{"uri": "s3://data/held-out-pairs.jsonl"}]},
    }
    settings = {**TRAINING, "method": "dpo", "globalBatchSize": 4}
    plain, sharded = make_group("plain", 1, dataset=dataset), shard(make_group("two", 2, dataset=dataset), {})
    assert plain.run(**settings) == [0], plain.logs
    assert sharded.run(**settings) == [0, 0], sharded.logs
    for name in ("trainLoss", "finalLoss", "evalLoss", "evalRewardAccuracy"):
        expected = plain.rank_zero.read_metrics()[name]
        assert sharded.rank_zero.read_metrics()[name] == pytest.approx(expected, abs=1e-5), name


def test_sharding_unsupported_settings_end_run_before_download(make_group: Callable[..., WorkerGroup]) -> None:
    group = shard(make_group("unsupported", 1), {"model": {"quantization": "nf4"}, "output": {"merged": False}})
    assert group.run(method="sft", lora={"variant": "dora"}) == [Reason.CONFIG_INVALID.exit_code], group.logs
    assert "compute.sharding full does not support model.quantization nf4 and training.lora.variant dora" in group.logs
    assert "to download" not in group.logs
