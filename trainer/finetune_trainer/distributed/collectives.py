"""Collective operations of the ranks of a run. With a single rank they do nothing and do not import torch.

Nodes exchange only numbers and bytes, never pickles, since the network does not authenticate the other side.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finetune_trainer.contract import Reason
from finetune_trainer.distributed.topology import is_local_rank_zero, is_rank_zero, rank, world_size
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.distributed_c10d import PrefixStore

T = TypeVar("T")
Heartbeat = Callable[[], None]
"""Called while this process waits for other ranks, which is no stall."""

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""For a rank that neither responds nor closes its connections, for example because its node is gone. A rank that ended
is noticed at once."""
_BARRIER_TIMEOUT = timedelta(days=30)
"""For ranks that wait while rank 0 evaluates and publishes, and sends them nothing meanwhile."""
_barrier_groups: list[ProcessGroup] = []
"""The process group of `barrier`, once it is created."""
_absent_ranks: list[str] = []
"""The ranks that this rank waits for, with their nodes, once they are known."""
_RELEASE_TIMEOUT_SECONDS = 30.0
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.0002, 0.02
"""Seconds between two checks whether all ranks have arrived. Ranks that compute in step wait for a short time."""
_PEER_LOST_MESSAGES = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "gloo",
    "nccl",
    "timed out",
)


@contextmanager
def translate_peer_errors() -> Iterator[None]:
    """Raise `PEER_LOST` for errors of torch in the block that mean that another rank is gone."""
    if world_size() == 1:
        yield
        return
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist

        if not isinstance(error, dist.DistError) and not any(
            text in str(error).lower() for text in _PEER_LOST_MESSAGES
        ):
            raise
        first_line = str(error).strip().partition("\n")[0]
        peers = _absent_ranks[0] if _absent_ranks else "another rank of this run"
        raise TrainerError(Reason.PEER_LOST, f"{peers} ended or is unreachable: {first_line}") from error


def note_absent_ranks(description: str) -> None:
    """Name these ranks in the error that follows when they end."""
    _absent_ranks[:] = [description]


def init_process_group(heartbeat: Heartbeat) -> None:
    """Join the process group of all ranks. Tensors on the CPU use gloo even if there are GPUs."""
    if world_size() == 1:
        return
    import torch
    import torch.distributed as dist

    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        # transformers loads the state of an optimizer to `cpu:<local rank>`, which torch cannot deserialize.
        torch.serialization.register_package(
            0, lambda _: None, lambda data, location: data if location == "cpu:0" else None
        )
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT)
    barrier_group = dist.new_group(backend="gloo", timeout=_BARRIER_TIMEOUT)
    if isinstance(barrier_group, dist.ProcessGroup):  # always true, since all ranks are members
        _barrier_groups.append(barrier_group)
    barrier(heartbeat)


def init_single_rank_mesh(device_type: str, name: str) -> DeviceMesh:
    """Return a mesh of this process alone, with a dimension of this name, for code that needs a process group."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        backend = "nccl" if torch.device(device_type).type == "cuda" else "gloo"
        dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    return init_device_mesh(device_type, (1,), mesh_dim_names=(name,))


def is_initialized() -> bool:
    """Return whether this rank has joined the process group. Imports nothing."""
    return bool(_barrier_groups)


def count_operations() -> int:
    """Return the number of collective operations that this rank has started on any device."""
    import torch
    import torch.distributed as dist

    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    groups = [group for group in (dist.group.WORLD, *_barrier_groups) if isinstance(group, dist.ProcessGroup)]
    backends = {group._get_backend(device) for group in groups[:1] for device in devices}
    backends |= {group._get_backend(devices[0]) for group in groups[1:]}
    # torch has no public counter, and its stubs lack this one.
    return sum(backend._get_sequence_number_for_group() for backend in backends)  # type: ignore[attr-defined]


def open_store(timeout: timedelta) -> PrefixStore:
    """Return a connection of its own to the store of the rendezvous, for keys that torch does not use."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]  # torch exports it
    return PrefixStore("finetune", store)


def barrier(heartbeat: Heartbeat | None = None) -> None:
    """Wait until all ranks have called this. Waiting counts as activity: each rank watches itself for stalls."""
    if world_size() > 1:
        _timed_barrier(heartbeat, float("inf"))


def release_waiters() -> None:
    """Let ranks that wait in `barrier` continue. Ranks that are gone are ignored."""
    if world_size() > 1:
        with suppress(RuntimeError):
            _timed_barrier(None, _RELEASE_TIMEOUT_SECONDS)


def all_reduce_any(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set in any rank."""
    if world_size() == 1:
        return flags
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tuple(map(bool, tensor.tolist()))


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of the tensor over all ranks, on the CPU, in the same shape."""
    tensor = tensor.to("cpu", copy=True)
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def sum_when_ready(value: int, heartbeat: Heartbeat | None) -> int:
    """Return the sum of the values of all ranks, and wait as long as it takes until all of them have called this.

    Without a heartbeat, the wait counts as a stall after `training.stallSeconds`.
    """
    import torch

    tensor = torch.tensor(value)
    _all_reduce_by(tensor, heartbeat, float("inf"))
    return int(tensor)


def broadcast(value: int) -> int:
    """Return the value of rank 0."""
    if world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(value)
    dist.broadcast(tensor, 0)
    return int(tensor)


def all_gather_bytes(content: bytes) -> list[bytes]:
    """Return the content of each rank, by rank."""
    import torch
    import torch.distributed as dist

    lengths = [torch.tensor(0) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor(len(content)))
    max_length = max(int(buffer) for buffer in lengths)
    local_buffer = torch.frombuffer(bytearray(content.ljust(max_length, b"\0")), dtype=torch.uint8)
    buffers = [torch.empty_like(local_buffer) for _ in lengths]
    dist.all_gather(buffers, local_buffer)
    return [bytes(each.tolist()[: int(length)]) for each, length in zip(buffers, lengths, strict=True)]


def run_on_local_rank_zero(compute: Callable[[], T], folder: Path, heartbeat: Heartbeat) -> T:
    """Call `compute` on local rank 0; the other ranks of the node read its pickled result from `folder`."""
    if world_size() == 1:
        return compute()
    path = folder / "made"
    if is_local_rank_zero():
        result = compute()
        path.write_bytes(ForkingPickler.dumps(result))
        barrier(heartbeat)
        return result
    barrier(heartbeat)
    # The pickle is from a rank of this node, in a folder that no other user can open.
    loaded: T = ForkingPickler.loads(path.read_bytes())
    return loaded


def _timed_barrier(heartbeat: Heartbeat | None, timeout_seconds: float) -> None:
    import torch

    _all_reduce_by(torch.zeros(1), heartbeat, time.monotonic() + timeout_seconds)


def _all_reduce_by(tensor: torch.Tensor, heartbeat: Heartbeat | None, deadline: float) -> None:
    """Sum a tensor on the CPU over all ranks, in place, if all ranks join before the deadline."""
    import torch.distributed as dist

    work = dist.all_reduce(tensor, group=_barrier_groups[0] if _barrier_groups else None, async_op=True)
    pause = _SHORTEST_PAUSE_SECONDS
    # Poll, since Python handles no signals while it waits in torch.
    while not work.is_completed() and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if heartbeat:
            heartbeat()
    if work.is_completed():
        work.wait()


__all__ = [
    "all_gather_bytes",
    "all_reduce_any",
    "all_reduce_sum",
    "barrier",
    "broadcast",
    "init_process_group",
    "init_single_rank_mesh",
    "is_local_rank_zero",
    "is_rank_zero",
    "rank",
    "release_waiters",
    "run_on_local_rank_zero",
    "sum_when_ready",
    "translate_peer_errors",
    "world_size",
]
