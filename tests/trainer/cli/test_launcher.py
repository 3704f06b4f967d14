"""The launcher of the ranks of a node: which ranks it waits for, and how it reports their end."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.s3_server import free_port
from tests.support.trainer.trainer_process import STEPS, TrainerRun, make_rows, make_run_factory
from tests.support.trainer.worker_processes import WorkerRun

from finetune_trainer.cli import launcher, rank_outcomes
from finetune_trainer.cli.rank_outcomes import AgentResult
from finetune_trainer.contract import NODE_RANK_ENV, NODES_ENV, PROCESSES_ENV, RENDEZVOUS_ENV, ExitCode, Outcome, Reason
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry import termination_message

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

training_marks = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(900)]


class TestLauncher:
    pytestmark = training_marks

    @pytest.fixture
    def node(self, s3: S3Server, tmp_path: Path) -> TrainerRun:
        pods = make_run_factory(s3, tmp_path)("job")
        pods.environment |= {
            NODES_ENV: "2",
            RENDEZVOUS_ENV: f"127.0.0.1:{free_port()}",
            launcher.RENDEZVOUS_SECONDS_ENV: "3",
        }
        return pods

    def test_launcher_single_node_stops_and_resumes(self, node: TrainerRun) -> None:
        node.environment |= {NODES_ENV: "1", PROCESSES_ENV: "2"}
        with node.start(checkpoints={"everySteps": 1000}) as process:
            node.wait_for(process, "step 6/")
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == ExitCode.PREEMPTED, node.log
        progress = node.outcome.progress
        assert progress
        assert progress.last_checkpoint_step == progress.step
        assert node.run().reason is Reason.COMPLETED, node.log
        assert node.read_metrics()["steps"] == STEPS
        assert f"resuming from step {progress.step}" in node.log

        # A pod that was lost after the result was published does not wait for peers.
        node.environment |= {NODES_ENV: "2", PROCESSES_ENV: "1", NODE_RANK_ENV: "1"}
        assert node.run().reason is Reason.ALREADY_COMPLETE, node.log

    def test_launcher_reports_root_cause(self, s3: S3Server, node: TrainerRun) -> None:
        s3.put("s3://data/wrong.jsonl", make_rows(3) + b'{"other": 1}\n')
        job = WorkerRun(**vars(node), dataset={"sources": [{"uri": "s3://data/wrong.jsonl"}]})
        job.environment |= {NODES_ENV: "1", PROCESSES_ENV: "2"}
        assert job.run().reason is Reason.DATA_INVALID, job.log

    @pytest.mark.parametrize(
        ("number", "reason"), [("0", Reason.PEERS_MISSING), ("1", Reason.PEER_LOST)], ids=["the first", "another"]
    )
    def test_launcher_missing_nodes_time_out(self, node: TrainerRun, number: str, reason: Reason) -> None:
        node.environment[NODE_RANK_ENV] = number
        assert node.run().reason is reason, node.log
        assert "rendezvous of 2 nodes" in node.outcome.message

    def test_launcher_rendezvous_can_be_stopped(self, node: TrainerRun) -> None:
        node.environment[launcher.RENDEZVOUS_SECONDS_ENV] = "600"
        with node.start() as process:
            node.wait_for(process, "rendezvous at")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == ExitCode.PREEMPTED, node.log


@pytest.mark.training
@pytest.mark.parametrize(("gpus", "own_gpus"), [(0, False), (1, None), (2, True), (8, True)])
def test_launcher_workers_all_have_gpu_or_none(
    monkeypatch: pytest.MonkeyPatch, gpus: int, own_gpus: bool | None
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    node = topology.Topology(node_count=1, processes_per_node=2, node_rank=0, rendezvous_endpoint="127.0.0.1:29400")
    if own_gpus is None:
        with pytest.raises(TrainerError, match="requests 2 ranks with one GPU each, but 1 GPUs are visible"):
            launcher._build_launch_config(node)
    else:
        assert launcher._build_launch_config(node).virtual_local_rank is own_gpus


def make_outcome(reason: Reason) -> Outcome:
    return termination_message.build_outcome(reason, reason)


SUMMARIES: dict[str, tuple[dict[int, Outcome], AgentResult, Reason, int | None]] = {
    # outcomes by rank, end of the agent, reason of the node and the rank that is named
    "all is well": (
        {0: make_outcome(Reason.COMPLETED), 1: make_outcome(Reason.COMPLETED)},
        AgentResult(),
        Reason.COMPLETED,
        None,
    ),
    "the result is complete": (
        {0: make_outcome(Reason.COMPLETED), 1: make_outcome(Reason.PEER_LOST)},
        AgentResult(),
        Reason.COMPLETED,
        None,
    ),
    "another node's": (
        {2: make_outcome(Reason.COMPLETED), 3: make_outcome(Reason.COMPLETED)},
        AgentResult(),
        Reason.COMPLETED,
        None,
    ),
    "a cause": (
        {0: make_outcome(Reason.PEER_LOST), 1: make_outcome(Reason.OUT_OF_MEMORY), 2: make_outcome(Reason.PREEMPTED)},
        AgentResult({0: 76}),
        Reason.OUT_OF_MEMORY,
        1,
    ),
    "the first of two causes": (
        {0: make_outcome(Reason.INTERNAL_ERROR), 1: make_outcome(Reason.OUT_OF_MEMORY)},
        AgentResult({1: 42}),
        Reason.OUT_OF_MEMORY,
        1,
    ),
    "a stop": (
        {0: make_outcome(Reason.PEER_LOST), 1: make_outcome(Reason.PREEMPTED)},
        AgentResult({0: 76}),
        Reason.PREEMPTED,
        1,
    ),
    "killed": ({0: make_outcome(Reason.PEER_LOST)}, AgentResult({1: -signal.SIGKILL}), Reason.INTERNAL_ERROR, 1),
    "did not respond": (
        {0: make_outcome(Reason.PEER_LOST)},
        AgentResult({1: -signal.SIGKILL}, unresponsive={1: 1800}),
        Reason.TRAINING_STALLED,
        1,
    ),
    "aborted by NCCL": ({}, AgentResult({0: -signal.SIGABRT}), Reason.PEER_LOST, 0),
    "killed because it did not end": (
        {0: make_outcome(Reason.PEER_LOST)},
        AgentResult({0: 76}),
        Reason.PEER_LOST,
        0,
    ),
    "not met": ({}, AgentResult(rendezvous_error=RuntimeError("no answer")), Reason.PEERS_MISSING, None),
}


@pytest.mark.parametrize(("outcomes", "ended", "expected", "rank"), SUMMARIES.values(), ids=SUMMARIES)
def test_launcher_worker_outcomes_are_summarized(
    outcomes: dict[int, Outcome], ended: AgentResult, expected: Reason, rank: int | None
) -> None:
    node = topology.Topology(node_count=2, processes_per_node=2, node_rank=0, rendezvous_endpoint="first:29400")
    outcome = rank_outcomes.combine_outcomes(node, outcomes, ended)
    assert outcome.reason is expected
    prefix = f"rank {rank} on node 0 ({socket.gethostname()}): "
    assert outcome.message.startswith(prefix) is (rank is not None)
