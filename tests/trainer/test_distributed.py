"""Several workers that train one model: the same result as one worker's, and none is left waiting when another ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.trainer.pods import STEPS, Forks, Pods, forking, make_pods, rows
from tests.trainer.s3_server import free_port

from finetune_trainer import outcome
from finetune_trainer.contract import (
    NODE_RANK_ENV,
    NODES_ENV,
    PROCESSES_ENV,
    RENDEZVOUS_ENV,
    RUN_ID_ENV,
    ExitCode,
    Outcome,
    Reason,
    TrainerConfig,
    Training,
)
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import model
from finetune_trainer.training.train import total_steps
from finetune_trainer.workers import launcher, layout

if TYPE_CHECKING:
    from tests.trainer.s3_server import S3Server

trains = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(900)]
UNEVEN = 18
"""Rows that no group of workers can share evenly."""
COMPARED = ("trainLoss", "finalLoss", "steps", "tokens", "supervisedTokens", "baseEvalLoss", "evalLoss")
SAVES_COUNTS = """
import sys
from pathlib import Path
import torch
torch.distributed.init_process_group("gloo")
from finetune_trainer.training.trl_methods import Counts
Counts(torch.device("cpu")).save(Path(sys.argv[1]))
"""
WAITS = """
import os, time
from datetime import timedelta
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.workers import group
group.PATIENCE = timedelta(seconds=2)
group.join(ProgressReporter())
if os.environ["RANK"] == "0":
    time.sleep(6)
    group.release()
else:
    group.wait(ProgressReporter())
"""
APART = [{"prompt": f"Where is {n}?", "completion": " ".join([f"place{n}"] * (2 + n % 4))} for n in range(11)]
"""Rows that do not resemble each other."""
PLAIN = {"maxSteps": None, "epochs": 2, "lora": {"rank": 4}, "learningRate": 2e-3}


@dataclass
class DataPods(Pods):
    """Pods whose run has other data."""

    dataset: dict[str, Any] | None = None

    def config(self, **training: Any) -> TrainerConfig:
        made = super().config(**training).to_json()
        return TrainerConfig.model_validate({**made, "dataset": self.dataset or made["dataset"]})

    @property
    def outcome(self) -> Outcome:
        """What it told its launcher, or the cluster where it has none."""
        rank, folder = self.environment.get("RANK"), self.environment.get(layout.FOLDER_ENV)
        path = Path(folder) / f"outcome-{rank}" if folder else self.folder / "outcome"
        return Outcome.model_validate_json(path.read_bytes())


@dataclass
class Workers:
    """The workers of one run, as torchrun would start them: so many on each node."""

    forks: Forks
    pods: list[Pods]
    per_node: int

    def start(self, **training: Any) -> list[int]:
        attempt = str(free_port())
        for rank, each in enumerate(self.pods):
            if len(self.pods) > 1:
                folder = each.folder.parent / f"node-{rank // self.per_node}-{attempt}"
                folder.mkdir(exist_ok=True)
                each.environment |= {"MASTER_PORT": attempt, layout.FOLDER_ENV: str(folder)}
        return [self.forks.start(each, **training) for each in self.pods]

    def run(self, **training: Any) -> list[int]:
        return [self.forks.wait(each) for each in self.start(**training)]

    @property
    def first(self) -> Pods:
        return self.pods[0]

    @property
    def logs(self) -> str:
        return "\n".join(each.log for each in self.pods)

    def reach(self, text: str) -> None:
        deadline = time.monotonic() + 240
        while text not in self.first.log:
            assert time.monotonic() < deadline, self.logs
            assert "Error" not in self.first.log, self.logs
            time.sleep(0.02)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with forking() as made:
        yield made


@pytest.fixture
def workers(s3: S3Server, tmp_path: Path, forks: Forks) -> Callable[..., Workers]:
    make = make_pods(s3, tmp_path)

    def made(name: str, nodes: int, per_node: int = 1, dataset: dict[str, Any] | None = None) -> Workers:
        pods: list[Pods] = []
        for rank in range(nodes * per_node):
            pod = make(f"{name}/{rank}")
            pod.output = pods[0].output if pods else pod.output
            pod.environment |= {RUN_ID_ENV: "uid-" + name}
            if nodes * per_node > 1:
                pod.environment |= {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(nodes * per_node),
                    "LOCAL_RANK": "0",
                    "LOCAL_WORLD_SIZE": str(per_node),
                    "MASTER_ADDR": "127.0.0.1",
                }
            pods.append(DataPods(**vars(pod), dataset=dataset))
        return Workers(forks, pods, per_node)

    return made


def adapter(s3: S3Server, pods: Pods, folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    path = folder / "adapter.safetensors"
    path.write_bytes(s3.get(f"{pods.output}/adapter_model.safetensors"))
    return dict(load_file(path))


def numbers(pods: Pods) -> dict[int, float]:
    return {step: float(loss) for step, loss in pods.losses().items()}


class TestSeveralWorkers:
    pytestmark = trains

    @pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
    def test_make_what_one_makes_with_batches_as_large_as_all_of_theirs(
        self, s3: S3Server, workers: Callable[..., Workers], tmp_path: Path, packing: bool
    ) -> None:
        held_out = [{"prompt": f"How far is {n}?", "completion": "Far."} for n in range(3)]
        s3.put("s3://data/held-out.jsonl", "".join(json.dumps(each) + "\n" for each in held_out).encode())
        s3.put("s3://data/uneven.jsonl", rows(UNEVEN))
        data = {
            "sources": [{"uri": "s3://data/uneven.jsonl"}],
            "validation": {"sources": [{"uri": "s3://data/held-out.jsonl"}]},
        }
        plain = {**PLAIN, "packing": packing}
        one = workers("one", 1, dataset=data)
        assert one.run(**plain, gradientAccumulation=4) == [0], one.logs
        for name, nodes, per_node, accumulation in (("two", 2, 1, 2), ("four", 2, 2, 1)):
            several = workers(name, nodes, per_node, data)
            assert several.run(**plain, gradientAccumulation=accumulation) == [0] * nodes * per_node, several.logs
            assert numbers(several.first) == pytest.approx(numbers(one.first), abs=1.1e-4)
            theirs = several.first.metrics()
            assert [theirs[each] for each in COMPARED] == pytest.approx(
                [one.first.metrics()[each] for each in COMPARED], abs=1e-4
            )
            expected, found = adapter(s3, one.first, tmp_path), adapter(s3, several.first, tmp_path)
            assert max(float((expected[key] - found[key]).abs().max()) for key in expected) < 1e-3
            assert not [key for key in s3.keys(several.first.output) if "/." in key]

    @pytest.mark.parametrize("method", ["dpo", "kto"])
    def test_learn_preferences(self, s3: S3Server, workers: Callable[..., Workers], method: str) -> None:
        made = [
            {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."}
            if method == "dpo"
            else {"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0}
            for n in range(7)
        ]
        s3.put(f"s3://data/{method}.jsonl", "".join(json.dumps(each) + "\n" for each in made).encode())
        job = workers(method, 2, dataset={"sources": [{"uri": f"s3://data/{method}.jsonl"}]})
        assert job.run(method=method, maxSteps=3, batchSize=2, gradientAccumulation=1) == [0, 0], job.logs
        assert job.first.metrics()["steps"] == 3

    def test_look_at_preferences_as_one_does(self, s3: S3Server, workers: Callable[..., Workers]) -> None:
        # Five rows in batches of two: one worker has a batch less, the other a smaller one.
        held_out = [
            {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."}
            if n % 2
            else {"prompt": f"What is {n}?", "chosen": "No idea.", "rejected": f"It is {n}."}
            for n in range(20, 25)
        ]
        made = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(8)]
        for name, content in (("pairs", made), ("held-out-pairs", held_out)):
            s3.put(f"s3://data/{name}.jsonl", "".join(json.dumps(each) + "\n" for each in content).encode())
        data = {
            "sources": [{"uri": "s3://data/pairs.jsonl"}],
            "validation": {"sources": [{"uri": "s3://data/held-out-pairs.jsonl"}]},
        }
        one, two = workers("one", 1, dataset=data), workers("two", 2, dataset=data)
        asked = {"method": "dpo", "maxSteps": 4, "batchSize": 2, "learningRate": 2e-3}
        assert one.run(**asked, gradientAccumulation=2) == [0], one.logs
        assert two.run(**asked, gradientAccumulation=1) == [0, 0], two.logs
        for name in ("evalLoss", "evalRewardAccuracy"):
            assert two.first.metrics()[name] == pytest.approx(one.first.metrics()[name], abs=1e-4), name
        assert one.first.metrics()["evalRewardAccuracy"] == pytest.approx(2 / 5)

    def test_stop_together_and_go_on_together(self, s3: S3Server, workers: Callable[..., Workers]) -> None:
        whole, parted = workers("whole", 2), workers("parted", 2)
        assert whole.run() == [0, 0], whole.logs

        processes = parted.start(checkpoints={"everySteps": 1000})
        parted.reach("step 6/")
        os.kill(processes[1], signal.SIGTERM)
        assert [self.ended(parted, each) for each in processes] == [ExitCode.PREEMPTED] * 2, parted.logs
        stopped = parted.first.outcome.progress
        assert stopped
        assert stopped.last_checkpoint_step == stopped.step
        losses = parted.first.losses()

        processes = parted.start()
        parted.reach("step 15 is stored")
        os.kill(processes[1], signal.SIGKILL)
        began = time.monotonic()
        assert self.ended(parted, processes[0]) == ExitCode.PEER_LOST, parted.logs
        assert time.monotonic() - began < 60
        assert self.ended(parted, processes[1]) == -signal.SIGKILL
        assert f"going on from step {stopped.step}" in parted.first.log
        losses |= parted.first.losses()

        assert parted.run() == [0, 0], parted.logs
        assert losses | parted.first.losses() == whole.first.losses()
        assert [parted.first.metrics()[name] for name in COMPARED[:5]] == pytest.approx(
            [whole.first.metrics()[name] for name in COMPARED[:5]]
        )
        assert not [key for key in s3.keys(parted.first.output) if "/." in key]

    def test_cross_validate_together(self, s3: S3Server, workers: Callable[..., Workers]) -> None:
        s3.put("s3://data/folds.jsonl", "".join(json.dumps(each) + "\n" for each in APART).encode())
        data = {"sources": [{"uri": "s3://data/folds.jsonl"}]}
        asked = {**PLAIN, "crossValidation": {"folds": 2}}
        one, two = workers("one", 1, dataset=data), workers("two", 2, dataset=data)
        assert one.run(**asked, gradientAccumulation=2) == [0], one.logs
        asked |= {"gradientAccumulation": 1, "checkpoints": {"everySteps": 1000}}
        processes = two.start(**asked)
        two.reach("fold 2/2: step 2/")
        os.kill(processes[1], signal.SIGTERM)
        assert [self.ended(two, each) for each in processes] == [ExitCode.PREEMPTED] * 2, two.logs
        assert two.run(**asked) == [0, 0], two.logs
        assert "fold 1/2: trains on" not in two.logs
        for name in (*COMPARED[:5], "crossValidationLoss", "crossValidationDeviation"):
            assert two.first.metrics()[name] == pytest.approx(one.first.metrics()[name], abs=1e-4), name

    def test_one_of_a_node_writes_the_counts(self, tmp_path: Path) -> None:
        # They share the folder, and a file that two write at once is torn.
        assert self.two(SAVES_COUNTS, tmp_path) == [0, 0]
        assert [path.parent.name for path in tmp_path.rglob("*.json")] == ["0"]

    def test_while_the_first_evaluates_the_others_wait_as_long_as_it_takes(self, tmp_path: Path) -> None:
        assert self.two(WAITS, tmp_path) == [0, 0]

    def two(self, script: str, tmp_path: Path) -> list[int]:
        """How two workers of one node end."""
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        workers = []
        for rank in range(2):
            (folder := tmp_path / str(rank)).mkdir()
            environment = os.environ | meeting | {"RANK": str(rank)}
            workers.append(subprocess.Popen([sys.executable, "-c", script, folder], env=environment))
        return [each.wait() for each in workers]

    def ended(self, group: Workers, child: int) -> int:
        return group.forks.wait(child)


class TestLauncher:
    pytestmark = trains

    @pytest.fixture
    def node(self, s3: S3Server, tmp_path: Path) -> Pods:
        pods = make_pods(s3, tmp_path)("job")
        pods.environment |= {NODES_ENV: "2", RENDEZVOUS_ENV: f"127.0.0.1:{free_port()}", launcher.MEETING_ENV: "3"}
        return pods

    def test_one_node_by_hand(self, node: Pods) -> None:
        node.environment |= {NODES_ENV: "1", PROCESSES_ENV: "2"}
        with node.start(checkpoints={"everySteps": 1000}) as process:
            node.wait_for(process, "step 6/")
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == ExitCode.PREEMPTED, node.log
        progress = node.outcome.progress
        assert progress
        assert progress.last_checkpoint_step == progress.step
        assert node.run().reason is Reason.COMPLETED, node.log
        assert node.metrics()["steps"] == STEPS
        assert f"going on from step {progress.step}" in node.log

        # A pod that was lost after the result was published waits for nobody.
        node.environment |= {NODES_ENV: "2", PROCESSES_ENV: "1", NODE_RANK_ENV: "1"}
        assert node.run().reason is Reason.ALREADY_COMPLETE, node.log

    def test_the_cause_is_told_and_not_that_others_ended(self, s3: S3Server, node: Pods) -> None:
        s3.put("s3://data/wrong.jsonl", rows(3) + b'{"other": 1}\n')
        job = DataPods(**vars(node), dataset={"sources": [{"uri": "s3://data/wrong.jsonl"}]})
        job.environment |= {NODES_ENV: "1", PROCESSES_ENV: "2"}
        assert job.run().reason is Reason.DATA_INVALID, job.log

    @pytest.mark.parametrize(
        ("number", "reason"), [("0", Reason.PEERS_MISSING), ("1", Reason.PEER_LOST)], ids=["the first", "another"]
    )
    def test_others_are_not_waited_for_for_ever(self, node: Pods, number: str, reason: Reason) -> None:
        node.environment[NODE_RANK_ENV] = number
        assert node.run().reason is reason, node.log
        assert "2 nodes did not come together" in node.outcome.message

    def test_a_wait_for_others_can_be_stopped(self, node: Pods) -> None:
        node.environment[launcher.MEETING_ENV] = "600"
        with node.start() as process:
            node.wait_for(process, "they meet at")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == ExitCode.PREEMPTED, node.log


@pytest.mark.training
@pytest.mark.parametrize(("gpus", "own"), [(0, False), (1, None), (2, True), (8, True)])
def test_each_worker_has_a_gpu_or_none_has(monkeypatch: pytest.MonkeyPatch, gpus: int, own: bool | None) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    where = layout.Layout(nodes=1, per_node=2, node=0, rendezvous="127.0.0.1:29400")
    if own is None:
        with pytest.raises(TrainerError, match="asks for 2 workers, with a GPU each, and 1 are visible"):
            launcher._config(where)
    else:
        assert launcher._config(where).virtual_local_rank is own


def made(reason: Reason) -> Outcome:
    return outcome.make(reason, reason)


SUMS: dict[str, tuple[dict[int, Outcome], launcher.Ended, Reason]] = {
    "all is well": ({0: made(Reason.COMPLETED), 1: made(Reason.COMPLETED)}, launcher.Ended(), Reason.COMPLETED),
    "the result is whole": ({0: made(Reason.COMPLETED), 1: made(Reason.PEER_LOST)}, launcher.Ended(), Reason.COMPLETED),
    "another node's": ({2: made(Reason.COMPLETED), 3: made(Reason.COMPLETED)}, launcher.Ended(), Reason.COMPLETED),
    "a cause": (
        {0: made(Reason.PEER_LOST), 1: made(Reason.OUT_OF_MEMORY), 2: made(Reason.PREEMPTED)},
        launcher.Ended({0: 76}),
        Reason.OUT_OF_MEMORY,
    ),
    "a stop": ({0: made(Reason.PEER_LOST), 1: made(Reason.PREEMPTED)}, launcher.Ended({0: 76}), Reason.PREEMPTED),
    "killed": ({0: made(Reason.PEER_LOST)}, launcher.Ended({1: -signal.SIGKILL}), Reason.INTERNAL_ERROR),
    "aborted by NCCL": ({}, launcher.Ended({0: -signal.SIGABRT}), Reason.PEER_LOST),
    "killed because it did not end": ({0: made(Reason.PEER_LOST)}, launcher.Ended({0: 76}), Reason.PEER_LOST),
    "not met": ({}, launcher.Ended(error=RuntimeError("no answer")), Reason.PEERS_MISSING),
}


@pytest.mark.parametrize(("said", "ended", "expected"), SUMS.values(), ids=SUMS)
def test_one_outcome_of_many(said: dict[int, Outcome], ended: launcher.Ended, expected: Reason) -> None:
    where = layout.Layout(nodes=2, per_node=2, node=0, rendezvous="first:29400")
    assert launcher._summed_up(where, said, ended).reason is expected


LAYOUTS: dict[str, tuple[dict[str, str], layout.Layout | None]] = {
    "nothing is asked": ({}, layout.Layout(1, 1, 0, "127.0.0.1:29400")),
    "GPUs of one node": ({PROCESSES_ENV: "8"}, layout.Layout(1, 8, 0, "127.0.0.1:29400")),
    "a second node": (
        {NODES_ENV: "2", PROCESSES_ENV: "4", NODE_RANK_ENV: "1", RENDEZVOUS_ENV: "job-0.job:29400"},
        layout.Layout(2, 4, 1, "job-0.job:29400"),
    ),
    "no such node": ({NODES_ENV: "2", NODE_RANK_ENV: "2", RENDEZVOUS_ENV: "job-0.job:29400"}, None),
    "nowhere to meet": ({NODES_ENV: "2"}, None),
    "no port": ({NODES_ENV: "2", RENDEZVOUS_ENV: "job-0.job"}, None),
    "no number": ({PROCESSES_ENV: "two"}, None),
}


@pytest.mark.parametrize(("environment", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: layout.Layout | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if expected:
        assert layout.asked() == expected
    else:
        with pytest.raises(TrainerError) as raised:
            layout.asked()
        assert raised.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize(
    ("asked", "chosen"), [("auto", "transformers"), ("transformers", "transformers"), ("unsloth", None)]
)
def test_unsloth_trains_alone(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, chosen: str | None
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = Pods(s3, tmp_path, "s3://results/out", {}).config(backend=asked)
    if chosen:
        assert model.choose_backend(config) == chosen
    else:
        with pytest.raises(TrainerError, match="unsloth trains in one process"):
            model.choose_backend(config)


# rows, batchSize, gradientAccumulation, workers → steps of two epochs
STEPS_OF = {"one": (18, 1, 4, 1, 10), "two": (18, 1, 2, 2, 10), "four": (18, 1, 1, 4, 10), "few rows": (3, 2, 4, 8, 2)}


@pytest.mark.parametrize(("count", "batch", "accumulation", "size", "steps"), STEPS_OF.values(), ids=STEPS_OF)
def test_steps_are_those_of_all_workers(count: int, batch: int, accumulation: int, size: int, steps: int) -> None:
    training = Training(epochs=2, batch_size=batch, gradient_accumulation=accumulation)
    assert total_steps(training, count, size) == steps
