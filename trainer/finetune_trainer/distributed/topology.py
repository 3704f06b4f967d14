"""Who takes part in a run: what was asked for, and which of the workers this process is. Needs no torch."""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.contract import (
    NODE_RANK_ENV,
    NODES_ENV,
    OUTCOME_PATH_ENV,
    PROCESSES_ENV,
    RENDEZVOUS_ENV,
    RENDEZVOUS_PORT,
    Reason,
)
from finetune_trainer.errors import TrainerError

NODE_FOLDER_ENV = "FINETUNE_NODE_FOLDER"
"""The folder that all workers of a node share; the launcher sets it."""
_PR_SET_PDEATHSIG = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Topology:
    """How many workers there are to be, where this node stands among the others, and where they meet."""

    node_count: int
    processes_per_node: int
    node_rank: int
    rendezvous_endpoint: str

    @property
    def world_size(self) -> int:
        """All of them."""
        return self.node_count * self.processes_per_node


def topology_from_env() -> Topology:
    """What the environment asks for. Raises `CONFIG_INVALID`."""
    node_count, processes_per_node, node_rank = (
        _read_int(NODES_ENV, 1),
        _read_int(PROCESSES_ENV, 1),
        _read_int(NODE_RANK_ENV, 0),
    )
    if node_count < 1 or processes_per_node < 1 or not 0 <= node_rank < node_count:
        settings_text = f"{NODES_ENV} {node_count}, {PROCESSES_ENV} {processes_per_node}, {NODE_RANK_ENV} {node_rank}"
        raise TrainerError(Reason.CONFIG_INVALID, f"{settings_text}: no such worker can be")
    rendezvous_endpoint = os.environ.get(RENDEZVOUS_ENV, "" if node_count > 1 else f"127.0.0.1:{RENDEZVOUS_PORT}")
    if not rendezvous_endpoint.rpartition(":")[2].isdigit():
        raise TrainerError(Reason.CONFIG_INVALID, f"{RENDEZVOUS_ENV} has to be the first node's HOST:PORT")
    return Topology(node_count, processes_per_node, node_rank, rendezvous_endpoint)


def rank() -> int:
    """This worker's number; torchrun's own variable, as those below."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """How many workers the run has; 1 also in the process that starts them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """Whether this is the worker that speaks for the run: it alone writes to the store."""
    return rank() == 0


def is_local_rank_zero() -> bool:
    """Whether this is the worker that does what is done once on each node."""
    return rank() % int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 0


def use_first_gpu() -> None:
    """Show CUDA one GPU alone, in a process that does the work of all workers of its node. Call it before torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.partition(",")[0]


def shared_folder() -> Path | None:
    """The folder of this node's workers, if they have been started by `launcher`."""
    folder = os.environ.get(NODE_FOLDER_ENV)
    return Path(folder) if folder and world_size() > 1 else None


def outcome_path() -> Path | None:
    """Where this process writes its outcome: for the cluster, or for the launcher that sums up its workers'."""
    folder = shared_folder()
    path = os.environ.get(OUTCOME_PATH_ENV)
    return folder / f"outcome-{rank()}" if folder else Path(path) if path else None


def termination_message_path() -> Path | None:
    """The pod's termination message, which belongs to the first worker until its launcher writes the outcome there."""
    path = os.environ.get(OUTCOME_PATH_ENV)
    return Path(path) if path and is_rank_zero() else None


def set_parent_death_signal() -> None:
    """A worker that outlives its launcher would go on writing, and nobody could stop it."""
    if shared_folder():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _read_int(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    if not value.isdigit():
        raise TrainerError(Reason.CONFIG_INVALID, f"{name} is {value!r}, which is no number")
    return int(value)
