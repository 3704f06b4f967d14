"""Number and location of the ranks, and their effect on training."""

from __future__ import annotations

import pytest
from tests.support.trainer.data_preparation import build_config

from finetune_trainer.contract import NODE_RANK_ENV, NODES_ENV, PROCESSES_ENV, RENDEZVOUS_ENV, Reason, Training
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import backends
from finetune_trainer.training.steps import count_optimizer_steps

LAYOUTS: dict[str, tuple[dict[str, str], topology.Topology | None]] = {
    "nothing is set": ({}, topology.Topology(1, 1, 0, "127.0.0.1:29400")),
    "GPUs of one node": ({PROCESSES_ENV: "8"}, topology.Topology(1, 8, 0, "127.0.0.1:29400")),
    "a second node": (
        {NODES_ENV: "2", PROCESSES_ENV: "4", NODE_RANK_ENV: "1", RENDEZVOUS_ENV: "job-0.job:29400"},
        topology.Topology(2, 4, 1, "job-0.job:29400"),
    ),
    "no such node": ({NODES_ENV: "2", NODE_RANK_ENV: "2", RENDEZVOUS_ENV: "job-0.job:29400"}, None),
    "nowhere to meet": ({NODES_ENV: "2"}, None),
    "no port": ({NODES_ENV: "2", RENDEZVOUS_ENV: "job-0.job"}, None),
    "no number": ({PROCESSES_ENV: "two"}, None),
}


@pytest.mark.parametrize(("environment", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_topology_from_environment_is_parsed(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: topology.Topology | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if expected:
        assert topology.topology_from_env() == expected
    else:
        with pytest.raises(TrainerError) as raised:
            topology.topology_from_env()
        assert raised.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize(
    ("backend", "chosen"), [("auto", "transformers"), ("transformers", "transformers"), ("unsloth", None)]
)
def test_choose_backend_several_workers_excludes_unsloth(
    monkeypatch: pytest.MonkeyPatch, backend: str, chosen: str | None
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = build_config({"epochs": 1, "backend": backend})
    if chosen:
        assert backends.choose_backend(config) == chosen
    else:
        with pytest.raises(TrainerError, match="unsloth supports a single process only"):
            backends.choose_backend(config)


# rows, batchSize, gradientAccumulation, workers → steps of two epochs
STEPS_OF = {"one": (18, 1, 4, 1, 10), "two": (18, 1, 2, 2, 10), "four": (18, 1, 1, 4, 10), "few rows": (3, 2, 4, 8, 2)}


@pytest.mark.parametrize(("count", "batch", "accumulation", "size", "steps"), STEPS_OF.values(), ids=STEPS_OF)
def test_total_steps_counts_all_workers(count: int, batch: int, accumulation: int, size: int, steps: int) -> None:
    training = Training(epochs=2, batch_size=batch, gradient_accumulation=accumulation)
    assert count_optimizer_steps(training, count, size) == steps
