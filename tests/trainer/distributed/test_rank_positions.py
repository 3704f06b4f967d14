"""Ranks that wait for another one name it."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.s3_server import free_port

from finetune_trainer.contract import ExitCode, Outcome, Reason
from finetune_trainer.distributed.rank_positions import Position, find_absent_ranks
from finetune_trainer.distributed.topology import NODE_FOLDER_ENV

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer

FAULTY_RANK_SCRIPT = """
import os, time
from datetime import timedelta
from pathlib import Path
import torch
from finetune_trainer import __main__ as command
from finetune_trainer.contract import Stage
from finetune_trainer.distributed import collectives
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder
from finetune_trainer.telemetry.watchdog import stall_watchdog

folder = Path(os.environ["FINETUNE_NODE_FOLDER"])
recorder = OutcomeRecorder(ProgressReporter())

def wait_for_peer():
    with stall_watchdog(recorder, folder, 2.0), collectives.translate_peer_errors():
        collectives.init_process_group(recorder.progress.heartbeat)
        recorder.progress.update(stage=Stage.TRAINING)
        if os.environ["RANK"] == "1":
            store = collectives.open_store(timedelta(seconds=10))
            while not store.check(["1"]):
                time.sleep(0.01)
            (folder / "at-fault").touch()
            while True:
                time.sleep(0.01)
        torch.distributed.all_reduce(torch.zeros(1))

outcome = command._run_to_outcome(wait_for_peer)
termination_message.write_outcome(outcome)
os._exit(outcome.reason.exit_code)
"""
HOST = socket.gethostname()


@pytest.mark.training
@pytest.mark.timeout(120)
@pytest.mark.parametrize("is_stopped", [False, True], ids=["loops", "stopped"])
def test_stalled_ranks_name_rank_that_they_wait_for(tmp_path: Path, forks: ForkServer, is_stopped: bool) -> None:
    ranks = start_ranks(forks, tmp_path)
    if is_stopped:
        wait_for_file(tmp_path / "node-1" / "at-fault")
        os.kill(ranks[1], signal.SIGSTOP)
    assert forks.wait(ranks[0]) == ExitCode.PEER_LOST
    outcome = read_outcome(tmp_path, 0)
    assert outcome.reason is Reason.PEER_LOST
    named = f"rank 1 on node 1 ({HOST})"
    # The rank that hangs ends first, which closes its connections.
    waits = f"no progress for 2 s in stage Training: this rank waits for {named}"
    assert outcome.message.startswith(waits if is_stopped else f"{named} ended or is unreachable: ")
    if is_stopped:
        os.kill(ranks[1], signal.SIGKILL)
    assert forks.wait(ranks[1]) == (-signal.SIGKILL if is_stopped else ExitCode.TRANSIENT)
    if not is_stopped:
        assert read_outcome(tmp_path, 1).reason is Reason.TRAINING_STALLED
        assert "while other ranks wait for this one" in read_outcome(tmp_path, 1).message


def start_ranks(forks: ForkServer, folder: Path) -> list[int]:
    """Start two ranks on a node each. Return their process ids."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    ranks = []
    for rank in range(2):
        (node_folder := folder / f"node-{rank}").mkdir()
        variables = meeting | {"RANK": str(rank), NODE_FOLDER_ENV: str(node_folder)}
        ranks.append(forks.start_script(FAULTY_RANK_SCRIPT, variables))
    return ranks


def read_outcome(folder: Path, rank: int) -> Outcome:
    return Outcome.model_validate_json((folder / f"node-{rank}" / f"outcome-{rank}").read_bytes())


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_find_absent_ranks_distinguishes_waiting_behind_and_silent() -> None:
    earlier = {rank: Position(beat=5, operations=7, host="a") for rank in range(4)}
    waiting, behind = Position(beat=7, operations=8, host="a"), Position(beat=7, operations=7, host="a")
    silent = Position(beat=5, operations=8, host="a")
    assert find_absent_ranks(earlier, {0: waiting, 1: behind, 2: silent, 3: waiting}, world_size=5) == [1, 2, 4]
    assert find_absent_ranks(earlier, dict.fromkeys(range(4), waiting), world_size=4) == []


def test_position_survives_store() -> None:
    position = Position(beat=3, operations=12, host="bot 1")
    assert Position.parse(position.to_text().encode()) == position
