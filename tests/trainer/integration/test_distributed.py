"""Tests of several workers: same result as with one worker, and none keeps waiting after another ended."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.s3_server import free_port
from tests.support.trainer.trainer_process import make_rows
from tests.support.trainer.worker_processes import WorkerGroup, make_group_factory, read_adapter, read_float_losses

from finetune_trainer.contract import SUSPEND_AT_STEP_ENV, ExitCode

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server
    from tests.support.trainer.trainer_process import TrainerRun

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(900)]

UNEVEN_ROWS = 18
"""Rows that no group of workers can share evenly."""
COMPARED = ("trainLoss", "finalLoss", "steps", "tokens", "supervisedTokens", "baseEvalLoss", "evalLoss")
SAVE_COUNTS_SCRIPT = """
import os
from pathlib import Path
import torch
torch.distributed.init_process_group("gloo")
from finetune_trainer.training.tokenized_trainer import TokenCounter
TokenCounter(torch.device("cpu")).save(Path(os.environ["COUNTS_DIR"]))
"""
WAIT_SCRIPT = """
import os, time
from datetime import timedelta
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.distributed import collectives
collectives.COLLECTIVE_TIMEOUT = timedelta(seconds=2)
collectives.init_process_group(ProgressReporter().heartbeat)
if os.environ["RANK"] == "0":
    time.sleep(4)
    collectives.release_waiters()
else:
    collectives.barrier(ProgressReporter().heartbeat)
"""
DISTINCT_ROWS = [{"prompt": f"Where is {n}?", "completion": " ".join([f"place{n}"] * (2 + n % 4))} for n in range(11)]
"""Rows that do not resemble each other."""
TRAINING = {"maxSteps": None, "epochs": 2, "lora": {"rank": 4}, "learningRate": 2e-3}


@pytest.fixture
def workers(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[..., WorkerGroup]:
    return make_group_factory(s3, tmp_path, forks)


def put_uneven_rows(s3: S3Server, method: str) -> dict[str, Any]:
    """Upload rows whose last batch is smaller, and rows for validation. Return the section `dataset` of the config."""
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No " * (1 + n % 5)} for n in range(20)]
    if method == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["rejected"]} for row in rows]
    for name, part in (("uneven", rows[:17]), ("held-out", rows[17:])):
        s3.put(f"s3://data/{method}-{name}.jsonl", "".join(json.dumps(row) + "\n" for row in part).encode())
    sources, held_out = ([{"uri": f"s3://data/{method}-{name}.jsonl"}] for name in ("uneven", "held-out"))
    return {"sources": sources, "validation": {"sources": held_out}, "preparation": {"deduplicate": "none"}}


def read_stored_training(s3: S3Server, run: TrainerRun) -> dict[str, list[float]]:
    """Return the losses, learning rates, validation losses and token counts of the newest checkpoint."""
    keys = sorted(s3.list_keys(run.output), reverse=True)
    state, counts = (
        json.loads(s3.get("s3://results/" + next(key for key in keys if key.endswith(name))))
        for name in ("trainer_state.json", "counts.json")
    )
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    return {
        "loss": [entry["loss"] for entry in steps],
        "learning rate": [entry["learning_rate"] for entry in steps],
        "validation": [look["metrics"]["evalLoss"] for look in counts["looks"]],
        "tokens": [counts["tokens"], counts["supervised"]],
    }


class TestWorkers:
    @pytest.mark.parametrize(
        ("batching", "per_node"),
        [({}, 1), ({"packing": True}, 2), ({"batching": "byLength"}, 1)],
        ids=["rows", "packed", "byLength"],
    )
    def test_workers_same_global_batch_match_single_worker(
        self,
        s3: S3Server,
        workers: Callable[..., WorkerGroup],
        batching: dict[str, object],
        per_node: int,
    ) -> None:
        held_out = [{"prompt": f"How far is {n}?", "completion": "Far."} for n in range(3)]
        s3.put("s3://data/held-out.jsonl", "".join(json.dumps(row) + "\n" for row in held_out).encode())
        s3.put("s3://data/uneven.jsonl", make_rows(UNEVEN_ROWS))
        data = {
            "sources": [{"uri": "s3://data/uneven.jsonl"}],
            "validation": {"sources": [{"uri": "s3://data/held-out.jsonl"}]},
        }
        plain = {**TRAINING, **batching}
        one = workers("one", 1, dataset=data)
        assert one.run(**plain, gradientAccumulation=4) == [0], one.logs
        several = workers("several", 2, per_node, data)
        assert several.run(**plain, gradientAccumulation=2 // per_node) == [0] * 2 * per_node, several.logs
        assert read_float_losses(several.rank_zero) == pytest.approx(read_float_losses(one.rank_zero), abs=1.1e-4)
        theirs = several.rank_zero.read_metrics()
        assert [theirs[metric] for metric in COMPARED] == pytest.approx(
            [one.rank_zero.read_metrics()[metric] for metric in COMPARED], abs=1e-4
        )
        expected, actual = read_adapter(s3, one.rank_zero), read_adapter(s3, several.rank_zero)
        assert max(float((expected[key] - actual[key]).abs().max()) for key in expected) < 1e-3
        assert not [key for key in s3.list_keys(several.rank_zero.output) if "/." in key]

    @pytest.mark.parametrize(
        ("method", "stages"), [("sft", {4: 2, 2: 4, 1: 6}), ("dpo", {2: 4, 1: 6})], ids=["sft", "dpo"]
    )
    def test_workers_global_batch_size_resumes_with_fewer_workers(
        self, s3: S3Server, workers: Callable[..., WorkerGroup], tmp_path: Path, method: str, stages: dict[int, int]
    ) -> None:
        """`stages` are the steps at which each number of workers stops, in the middle of an epoch."""
        data = put_uneven_rows(s3, method)
        settings = {**TRAINING, "method": method, "batchSize": 2, "gradientAccumulation": 4, "globalBatchSize": 8}
        settings |= {"earlyStopping": {"patience": 1000}, "evalSteps": 2, "checkpoints": {"everySteps": 1000}}
        whole = workers("whole", 1, dataset=data)
        whole.rank_zero.environment[SUSPEND_AT_STEP_ENV] = "6"
        assert whole.run(**settings) == [0], whole.logs
        for count, step in stages.items():
            parted = workers(f"parted-{count}", count, dataset=data)
            for pod in parted.pods:
                pod.output = f"s3://results/{tmp_path.name}/parted"
                pod.environment[SUSPEND_AT_STEP_ENV] = str(step)
            assert parted.run(**settings) == [0] * count, parted.logs
        assert "saved by 2 ranks, resumed by 1; dropout continues with other random numbers" in parted.logs
        expected, actual = (read_stored_training(s3, group.rank_zero) for group in (whole, parted))
        assert len(actual["loss"]) == 6
        for name, values in expected.items():
            assert actual[name] == pytest.approx(values, abs=1e-5), name

    @pytest.mark.parametrize("method", ["dpo", "kto"])
    def test_workers_train_on_preferences(self, s3: S3Server, workers: Callable[..., WorkerGroup], method: str) -> None:
        rows = [
            {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."}
            if method == "dpo"
            else {"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0}
            for n in range(7)
        ]
        s3.put(f"s3://data/{method}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        job = workers(method, 2, dataset={"sources": [{"uri": f"s3://data/{method}.jsonl"}]})
        assert job.run(method=method, maxSteps=3, batchSize=2, gradientAccumulation=1) == [0, 0], job.logs
        assert job.rank_zero.read_metrics()["steps"] == 3

    def test_workers_evaluate_preferences_like_single_worker(
        self, s3: S3Server, workers: Callable[..., WorkerGroup]
    ) -> None:
        # Five rows in batches of two: one worker has a batch less, the other a smaller one.
        held_out = [
            {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."}
            if n % 2
            else {"prompt": f"What is {n}?", "chosen": "No idea.", "rejected": f"It is {n}."}
            for n in range(20, 25)
        ]
        pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(8)]
        for name, content in (("pairs", pairs), ("held-out-pairs", held_out)):
            s3.put(f"s3://data/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in content).encode())
        data = {
            "sources": [{"uri": "s3://data/pairs.jsonl"}],
            "validation": {"sources": [{"uri": "s3://data/held-out-pairs.jsonl"}]},
        }
        one, two = workers("one", 1, dataset=data), workers("two", 2, dataset=data)
        settings = {"method": "dpo", "maxSteps": 4, "batchSize": 2, "learningRate": 2e-3}
        assert one.run(**settings, gradientAccumulation=2) == [0], one.logs
        assert two.run(**settings, gradientAccumulation=1) == [0, 0], two.logs
        for name in ("evalLoss", "evalRewardAccuracy"):
            assert two.rank_zero.read_metrics()[name] == pytest.approx(one.rank_zero.read_metrics()[name], abs=1e-4), (
                name
            )
        assert one.rank_zero.read_metrics()["evalRewardAccuracy"] == pytest.approx(2 / 5)

    def test_workers_keep_adapter_as_reference(self, s3: S3Server, workers: Callable[..., WorkerGroup]) -> None:
        pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(8)]
        s3.put("s3://data/pairs.jsonl", "".join(json.dumps(row) + "\n" for row in pairs).encode())
        data = {"sources": [{"uri": "s3://data/pairs.jsonl"}]}
        first = workers("first", 1)
        assert first.run(maxSteps=6) == [0], first.logs
        one, two = workers("one", 1, dataset=data), workers("two", 2, dataset=data)
        for pod in (*one.pods, *two.pods):
            pod.changes = {"model": {"adapterURI": first.rank_zero.output}}
        settings = {"method": "dpo", "maxSteps": 4, "batchSize": 2, "learningRate": 2e-3}
        assert one.run(**settings, gradientAccumulation=2) == [0], one.logs
        assert two.run(**settings, gradientAccumulation=1) == [0, 0], two.logs
        losses = read_float_losses(two.rank_zero)
        assert losses[1] == pytest.approx(0.6931, abs=1e-4)
        assert losses == pytest.approx(read_float_losses(one.rank_zero), abs=1.1e-4)

    def test_workers_stop_and_resume_together(self, s3: S3Server, workers: Callable[..., WorkerGroup]) -> None:
        uninterrupted, interrupted = workers("whole", 2), workers("parted", 2)
        assert uninterrupted.run() == [0, 0], uninterrupted.logs

        processes = interrupted.start(checkpoints={"everySteps": 1000})
        interrupted.wait_for("step 6/")
        os.kill(processes[1], signal.SIGTERM)
        assert [self.wait_for_exit(interrupted, process) for process in processes] == [ExitCode.PREEMPTED] * 2, (
            interrupted.logs
        )
        stopped = interrupted.rank_zero.outcome.progress
        assert stopped
        assert stopped.last_checkpoint_step == stopped.step
        losses = interrupted.rank_zero.read_losses()

        processes = interrupted.start()
        interrupted.wait_for("stored step 15 in")
        os.kill(processes[1], signal.SIGKILL)
        began = time.monotonic()
        assert self.wait_for_exit(interrupted, processes[0]) == ExitCode.PEER_LOST, interrupted.logs
        assert time.monotonic() - began < 60
        assert self.wait_for_exit(interrupted, processes[1]) == -signal.SIGKILL
        assert f"resuming from step {stopped.step}" in interrupted.rank_zero.log
        losses |= interrupted.rank_zero.read_losses()

        assert interrupted.run() == [0, 0], interrupted.logs
        assert losses | interrupted.rank_zero.read_losses() == uninterrupted.rank_zero.read_losses()
        assert [interrupted.rank_zero.read_metrics()[name] for name in COMPARED[:5]] == pytest.approx(
            [uninterrupted.rank_zero.read_metrics()[name] for name in COMPARED[:5]]
        )
        assert not [key for key in s3.list_keys(interrupted.rank_zero.output) if "/." in key]

    def test_workers_cross_validation_matches_single_worker(
        self, s3: S3Server, workers: Callable[..., WorkerGroup]
    ) -> None:
        s3.put("s3://data/folds.jsonl", "".join(json.dumps(row) + "\n" for row in DISTINCT_ROWS).encode())
        data = {"sources": [{"uri": "s3://data/folds.jsonl"}]}
        settings = {**TRAINING, "crossValidation": {"folds": 2}, "gradientAccumulation": 4, "globalBatchSize": 2}
        one, two = workers("one", 1, dataset=data), workers("two", 2, dataset=data)
        resumed = workers("resumed", 1, dataset=data)
        assert one.run(**settings) == [0], one.logs
        settings |= {"checkpoints": {"everySteps": 1000}}
        processes = two.start(**settings)
        two.wait_for("fold 2/2: step 2/")
        os.kill(processes[1], signal.SIGTERM)
        assert [self.wait_for_exit(two, process) for process in processes] == [ExitCode.PREEMPTED] * 2, two.logs
        resumed.rank_zero.output = two.rank_zero.output
        assert resumed.run(**settings) == [0], resumed.logs
        assert "fold 1/2: training on" not in resumed.logs
        expected, actual = one.rank_zero.read_metrics(), resumed.rank_zero.read_metrics()
        for name in (*COMPARED[:5], "crossValidationLoss", "crossValidationDeviation"):
            assert actual[name] == pytest.approx(expected[name], abs=1e-5), name

    def test_workers_counts_are_written_by_local_rank_zero(self, tmp_path: Path, forks: ForkServer) -> None:
        # They share the folder, and a file that two write at once is torn.
        assert self.run_two_workers(forks, SAVE_COUNTS_SCRIPT, tmp_path) == [0, 0]
        assert [path.parent.name for path in tmp_path.rglob("*.json")] == ["0"]

    def test_workers_wait_while_rank_zero_evaluates(self, tmp_path: Path, forks: ForkServer) -> None:
        assert self.run_two_workers(forks, WAIT_SCRIPT, tmp_path) == [0, 0]

    def run_two_workers(self, forks: ForkServer, script: str, tmp_path: Path) -> list[int]:
        """Return the exit codes of two workers of one node."""
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        workers = []
        for rank in range(2):
            (folder := tmp_path / str(rank)).mkdir()
            workers.append(forks.start_script(script, meeting | {"RANK": str(rank), "COUNTS_DIR": str(folder)}))
        return [forks.wait(worker) for worker in workers]

    def wait_for_exit(self, group: WorkerGroup, child: int) -> int:
        return group.fork_server.wait(child)
