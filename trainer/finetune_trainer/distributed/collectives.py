"""What the workers of a run say to each other. A run of one worker imports no torch here and waits for nobody.

Only numbers and bytes travel between nodes, never pickles: the network does not say who is at the other end.
"""

from __future__ import annotations

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

T = TypeVar("T")
Heartbeat = Callable[[], None]
"""Called while this process waits for other ranks, which is no stall."""

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""For a worker that neither answers nor has closed its connections, as when its node is gone. One that ended is noticed
at once."""
_BARRIER_TIMEOUT = timedelta(days=30)
"""For workers that wait while the first one evaluates and publishes, which moves but says nothing to them."""
_barrier_groups: list[ProcessGroup] = []
"""The group that they wait in, once they have joined."""
_RELEASE_TIMEOUT_SECONDS = 30.0
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
    """Turns what torch raises when another worker is gone into `PEER_LOST`."""
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
        raise TrainerError(
            Reason.PEER_LOST, f"another worker of this run ended or cannot be reached: {first_line}"
        ) from error


def init_process_group(heartbeat: Heartbeat) -> None:
    """Meet the others. Numbers on the CPU go through gloo also where there are GPUs."""
    if world_size() == 1:
        return
    import torch
    import torch.distributed as dist

    has_gpu = torch.cuda.is_available()
    if (
        not has_gpu
    ):  # transformers loads an optimizer's state to the worker's device, and torch has no name for CPUs' numbers
        torch.serialization.register_package(
            0, lambda _: None, lambda data, location: data if location == "cpu:0" else None
        )
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT)
    barrier_group = dist.new_group(backend="gloo", timeout=_BARRIER_TIMEOUT)
    if isinstance(barrier_group, dist.ProcessGroup):  # as for all workers, since all are in it
        _barrier_groups.append(barrier_group)
    barrier(heartbeat)


def barrier(heartbeat: Heartbeat | None = None) -> None:
    """Until all workers have come here. Others that move are progress, and each worker watches itself."""
    if world_size() > 1:
        _timed_barrier(heartbeat, float("inf"))


def release_waiters() -> None:
    """Let those go who `wait`. Their loss does not matter any more."""
    if world_size() > 1:
        with suppress(RuntimeError):
            _timed_barrier(None, _RELEASE_TIMEOUT_SECONDS)


def all_reduce_any(*flags: bool) -> tuple[bool, ...]:
    """Of each flag, whether it is set in any worker."""
    if world_size() == 1:
        return flags
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tuple(map(bool, tensor.tolist()))


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all workers, on the CPU."""
    tensor = tensor.to("cpu", copy=True)
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def broadcast(value: int) -> int:
    """The first worker's number."""
    if world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(value)
    dist.broadcast(tensor, 0)
    return int(tensor)


def all_gather_bytes(content: bytes) -> list[bytes]:
    """What each worker holds, by its number."""
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
    """Have it made by one worker of each node; the others take it from a file in the folder that is theirs alone."""
    if world_size() == 1:
        return compute()
    path = folder / "made"
    if is_local_rank_zero():
        result = compute()
        path.write_bytes(ForkingPickler.dumps(result))
        barrier(heartbeat)
        return result
    barrier(heartbeat)
    loaded: T = ForkingPickler.loads(
        path.read_bytes()
    )  # of a process of our own, in a folder that nobody else can open
    return loaded


def _timed_barrier(heartbeat: Heartbeat | None, timeout_seconds: float) -> None:
    import torch
    import torch.distributed as dist

    work = dist.all_reduce(torch.zeros(1), group=_barrier_groups[0] if _barrier_groups else None, async_op=True)
    deadline = time.monotonic() + timeout_seconds
    # In short turns: Python handles no signal while it waits in torch.
    while not work.is_completed() and time.monotonic() < deadline:
        time.sleep(0.02)
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
    "is_local_rank_zero",
    "is_rank_zero",
    "rank",
    "release_waiters",
    "run_on_local_rank_zero",
    "translate_peer_errors",
    "world_size",
]
