"""The ranks of a run: the requested topology, and which rank this process is. Needs no torch."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.contract import (
    NODE_RANK_ENV,
    NODES_ENV,
    OUTCOME_PATH_ENV,
    PROCESSES_ENV,
    RENDEZVOUS_ENV,
    RENDEZVOUS_PORT,
    SHARDING_ENV,
    Reason,
)
from finetune_trainer.errors import TrainerError

NODE_FOLDER_ENV = "FINETUNE_NODE_FOLDER"
"""Folder that all ranks of a node share. The launcher sets it."""
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


@dataclass(frozen=True)
class Topology:
    """The requested number of nodes and of ranks per node, the rank of this node, and the rendezvous endpoint."""

    node_count: int
    processes_per_node: int
    node_rank: int
    rendezvous_endpoint: str

    @property
    def world_size(self) -> int:
        """Number of ranks of the run."""
        return self.node_count * self.processes_per_node


def topology_from_env() -> Topology:
    """Read the topology from the environment. Raises `CONFIG_INVALID`."""
    node_count, processes_per_node, node_rank = (
        _read_int(NODES_ENV, 1),
        _read_int(PROCESSES_ENV, 1),
        _read_int(NODE_RANK_ENV, 0),
    )
    if node_count < 1 or processes_per_node < 1 or not 0 <= node_rank < node_count:
        settings_text = f"{NODES_ENV} {node_count}, {PROCESSES_ENV} {processes_per_node}, {NODE_RANK_ENV} {node_rank}"
        raise TrainerError(Reason.CONFIG_INVALID, f"invalid topology: {settings_text}")
    rendezvous_endpoint = os.environ.get(RENDEZVOUS_ENV, "" if node_count > 1 else f"127.0.0.1:{RENDEZVOUS_PORT}")
    if not rendezvous_endpoint.rpartition(":")[2].isdigit():
        raise TrainerError(Reason.CONFIG_INVALID, f"{RENDEZVOUS_ENV} must be HOST:PORT of the first node")
    return Topology(node_count, processes_per_node, node_rank, rendezvous_endpoint)


def rank() -> int:
    """Return the rank of this process, from the variable of torchrun."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of ranks; 1 in the launcher, which is not a rank."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_sharded() -> bool:
    """Return whether the ranks share the base model: each holds a part of every layer. Raises `CONFIG_INVALID`."""
    sharding = os.environ.get(SHARDING_ENV) or "none"
    if sharding not in ("none", "full"):
        raise TrainerError(Reason.CONFIG_INVALID, f"{SHARDING_ENV} is {sharding!r}, expected none or full")
    return sharding == "full"


@contextmanager
def use_sharding(is_sharded: bool) -> Iterator[None]:
    """Check and load models in the block as a rank of a run with this sharding, in a process that plans the run."""
    previous = os.environ.get(SHARDING_ENV)
    os.environ[SHARDING_ENV] = "full" if is_sharded else "none"
    try:
        yield
    finally:
        os.environ.pop(SHARDING_ENV)
        if previous is not None:
            os.environ[SHARDING_ENV] = previous


def is_rank_zero() -> bool:
    """Return whether this is rank 0, the only rank that writes to the store."""
    return rank() == 0


def is_local_rank_zero() -> bool:
    """Return whether this is local rank 0, which does what is done once on each node."""
    return rank() % int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 0


def use_first_gpu() -> None:
    """Make only the first GPU visible, in a process that replaces the ranks of its node. Call before torch is used."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.partition(",")[0]


def shared_folder() -> Path | None:
    """Return the folder of the ranks of this node, if the launcher has started them."""
    folder = os.environ.get(NODE_FOLDER_ENV)
    return Path(folder) if folder and world_size() > 1 else None


def alive_path() -> Path | None:
    """Return the file with the id of this process that it touches while it responds, and that its launcher watches."""
    folder = shared_folder()
    return folder / f"alive-{rank()}" if folder else None


def describe_rank(rank_number: int, host: str | None) -> str:
    """Return a rank with the number of its node and the name of the host, if it is known, which is that of the pod."""
    node_number = rank_number // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return f"rank {rank_number} on node {node_number}" + (f" ({host})" if host else "")


def outcome_path() -> Path | None:
    """Return where this process writes its outcome: the termination message, or a file that the launcher reads."""
    folder = shared_folder()
    path = os.environ.get(OUTCOME_PATH_ENV)
    return folder / f"outcome-{rank()}" if folder else Path(path) if path else None


def termination_message_path() -> Path | None:
    """Return the termination message of the pod, which rank 0 writes until its launcher writes the outcome."""
    path = os.environ.get(OUTCOME_PATH_ENV)
    return Path(path) if path and is_rank_zero() else None


def set_parent_death_signal() -> None:
    """End this rank when its launcher ends: otherwise it would keep writing, and nothing could stop it."""
    if shared_folder():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _read_int(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    if not value.isdigit():
        raise TrainerError(Reason.CONFIG_INVALID, f"{name} is {value!r}, expected a number")
    return int(value)
