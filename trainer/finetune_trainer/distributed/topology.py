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

FOLDER_ENV = "FINETUNE_NODE_FOLDER"
"""The folder that all workers of a node share; the launcher sets it."""
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Layout:
    """How many workers there are to be, where this node stands among the others, and where they meet."""

    nodes: int
    per_node: int
    node: int
    rendezvous: str

    @property
    def workers(self) -> int:
        """All of them."""
        return self.nodes * self.per_node


def asked() -> Layout:
    """What the environment asks for. Raises `CONFIG_INVALID`."""
    nodes, per_node, node = _number(NODES_ENV, 1), _number(PROCESSES_ENV, 1), _number(NODE_RANK_ENV, 0)
    if nodes < 1 or per_node < 1 or not 0 <= node < nodes:
        given = f"{NODES_ENV} {nodes}, {PROCESSES_ENV} {per_node}, {NODE_RANK_ENV} {node}"
        raise TrainerError(Reason.CONFIG_INVALID, f"{given}: no such worker can be")
    rendezvous = os.environ.get(RENDEZVOUS_ENV, "" if nodes > 1 else f"127.0.0.1:{RENDEZVOUS_PORT}")
    if not rendezvous.rpartition(":")[2].isdigit():
        raise TrainerError(Reason.CONFIG_INVALID, f"{RENDEZVOUS_ENV} has to be the first node's HOST:PORT")
    return Layout(nodes, per_node, node, rendezvous)


def rank() -> int:
    """This worker's number; torchrun's own variable, as those below."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def size() -> int:
    """How many workers the run has; 1 also in the process that starts them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the worker that speaks for the run: it alone writes to the store."""
    return rank() == 0


def leads_node() -> bool:
    """Whether this is the worker that does what is done once on each node."""
    return rank() % int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 0


def use_first_gpu() -> None:
    """Show CUDA one GPU alone, in a process that does the work of all workers of its node. Call it before torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.partition(",")[0]


def shared_folder() -> Path | None:
    """The folder of this node's workers, if they have been started by `launcher`."""
    folder = os.environ.get(FOLDER_ENV)
    return Path(folder) if folder and size() > 1 else None


def outcome_path() -> Path | None:
    """Where this process writes its outcome: for the cluster, or for the launcher that sums up its workers'."""
    folder = shared_folder()
    path = os.environ.get(OUTCOME_PATH_ENV)
    return folder / f"outcome-{rank()}" if folder else Path(path) if path else None


def termination_message_path() -> Path | None:
    """The pod's termination message, which belongs to the first worker until its launcher writes the outcome there."""
    path = os.environ.get(OUTCOME_PATH_ENV)
    return Path(path) if path and is_first() else None


def die_with_launcher() -> None:
    """A worker that outlives its launcher would go on writing, and nobody could stop it."""
    if shared_folder():
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise TrainerError(Reason.CONFIG_INVALID, f"{name} is {text!r}, which is no number")
    return int(text)
