"""The ranks of a distributed run as local processes, and reading their results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.trainer.s3_server import free_port
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import RUN_ID_ENV, Outcome, TrainerConfig
from finetune_trainer.distributed import topology

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server


@dataclass
class WorkerRun(TrainerRun):
    """A run with another dataset that returns the outcome of one rank."""

    dataset: dict[str, Any] | None = None

    def config(self, **training: Any) -> TrainerConfig:
        content = super().config(**training).to_json()
        return TrainerConfig.model_validate({**content, "dataset": self.dataset or content["dataset"]})

    @property
    def outcome(self) -> Outcome:
        """Return the outcome that the rank wrote for its launcher, or for the cluster if it has no launcher."""
        rank, folder = self.environment.get("RANK"), self.environment.get(topology.NODE_FOLDER_ENV)
        path = Path(folder) / f"outcome-{rank}" if folder else self.folder / "outcome"
        return Outcome.model_validate_json(path.read_bytes())


@dataclass
class WorkerGroup:
    """The ranks of one run, `per_node` on each node, started as torchrun does."""

    fork_server: ForkServer
    pods: list[TrainerRun]
    per_node: int

    def start(self, **training: Any) -> list[int]:
        attempt = str(free_port())
        for rank, pod in enumerate(self.pods):
            if len(self.pods) > 1:
                folder = pod.folder.parent / f"node-{rank // self.per_node}-{attempt}"
                folder.mkdir(exist_ok=True)
                pod.environment |= {"MASTER_PORT": attempt, topology.NODE_FOLDER_ENV: str(folder)}
        return [self.fork_server.start(pod, **training) for pod in self.pods]

    def run(self, **training: Any) -> list[int]:
        return [self.fork_server.wait(child) for child in self.start(**training)]

    @property
    def rank_zero(self) -> TrainerRun:
        return self.pods[0]

    @property
    def logs(self) -> str:
        return "\n".join(pod.log for pod in self.pods)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 240
        while text not in self.rank_zero.log:
            assert time.monotonic() < deadline, self.logs
            assert "Error" not in self.rank_zero.log, self.logs
            time.sleep(0.02)


def make_group_factory(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[..., WorkerGroup]:
    """Return a function that creates the ranks of a run by its name and the numbers of nodes and ranks per node."""
    make_run = make_run_factory(s3, tmp_path)

    def make_group(name: str, nodes: int, per_node: int = 1, dataset: dict[str, Any] | None = None) -> WorkerGroup:
        pods: list[TrainerRun] = []
        for rank in range(nodes * per_node):
            pod = make_run(f"{name}/{rank}")
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
            pods.append(WorkerRun(**vars(pod), dataset=dataset))
        return WorkerGroup(forks, pods, per_node)

    return make_group


def read_adapter(s3: S3Server, run: TrainerRun) -> dict[str, Any]:
    """Return the published weights by name. They are no view of a file, which the next adapter would overwrite."""
    from safetensors.torch import load

    return dict(load(s3.get(f"{run.output}/adapter_model.safetensors")))


def read_float_losses(run: TrainerRun) -> dict[int, float]:
    return {step: float(loss) for step, loss in run.read_losses().items()}
