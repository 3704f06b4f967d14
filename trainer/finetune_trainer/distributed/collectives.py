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
from finetune_trainer.distributed.topology import is_first, leads_node, rank, size
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from finetune_trainer.telemetry.progress import ProgressReporter

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""For a worker that neither answers nor has closed its connections, as when its node is gone. One that ended is noticed
at once."""
_LONGEST_WAIT = timedelta(days=30)
"""For workers that wait while the first one evaluates and publishes, which moves but says nothing to them."""
_waiting: list[ProcessGroup] = []
"""The group that they wait in, once they have joined."""
_LAST_WORD_SECONDS = 30.0
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl", "timed out")


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turns what torch raises when another worker is gone into `PEER_LOST`."""
    if size() == 1:
        yield
        return
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist

        if not isinstance(error, dist.DistError) and not any(text in str(error).lower() for text in _LOST):
            raise
        said = str(error).strip().partition("\n")[0]
        raise TrainerError(
            Reason.PEER_LOST, f"another worker of this run ended or cannot be reached: {said}"
        ) from error


def join(progress: ProgressReporter) -> None:
    """Meet the others. Numbers on the CPU go through gloo also where there are GPUs."""
    if size() == 1:
        return
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    if (
        not gpu
    ):  # transformers loads an optimizer's state to the worker's device, and torch has no name for CPUs' numbers
        torch.serialization.register_package(0, lambda _: None, lambda data, where: data if where == "cpu:0" else None)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
    waiting = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
    if isinstance(waiting, dist.ProcessGroup):  # as for all workers, since all are in it
        _waiting.append(waiting)
    wait(progress)


def wait(progress: ProgressReporter | None = None) -> None:
    """Until all workers have come here. Others that move are progress, and each worker watches itself."""
    if size() > 1:
        _barrier(progress, float("inf"))


def release() -> None:
    """Let those go who `wait`. Their loss does not matter any more."""
    if size() > 1:
        with suppress(RuntimeError):
            _barrier(None, _LAST_WORD_SECONDS)


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Of each flag, whether it is set in any worker."""
    if size() == 1:
        return flags
    import torch
    import torch.distributed as dist

    numbers = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return tuple(map(bool, numbers.tolist()))


def total(number: torch.Tensor) -> torch.Tensor:
    """The sum over all workers, on the CPU."""
    number = number.to("cpu", copy=True)
    if size() > 1:
        import torch.distributed as dist

        dist.all_reduce(number)
    return number


def from_first(number: int) -> int:
    """The first worker's number."""
    if size() == 1:
        return number
    import torch
    import torch.distributed as dist

    numbers = torch.tensor(number)
    dist.broadcast(numbers, 0)
    return int(numbers)


def gathered(content: bytes) -> list[bytes]:
    """What each worker holds, by its number."""
    import torch
    import torch.distributed as dist

    lengths = [torch.tensor(0) for _ in range(size())]
    dist.all_gather(lengths, torch.tensor(len(content)))
    longest = max(int(each) for each in lengths)
    mine = torch.frombuffer(bytearray(content.ljust(longest, b"\0")), dtype=torch.uint8)
    padded = [torch.empty_like(mine) for _ in lengths]
    dist.all_gather(padded, mine)
    return [bytes(each.tolist()[: int(length)]) for each, length in zip(padded, lengths, strict=True)]


def once_per_node(make: Callable[[], T], folder: Path, progress: ProgressReporter) -> T:
    """Have it made by one worker of each node; the others take it from a file in the folder that is theirs alone."""
    if size() == 1:
        return make()
    path = folder / "made"
    if leads_node():
        made = make()
        path.write_bytes(ForkingPickler.dumps(made))
        wait(progress)
        return made
    wait(progress)
    found: T = ForkingPickler.loads(path.read_bytes())  # of a process of our own, in a folder that nobody else can open
    return found


def _barrier(progress: ProgressReporter | None, seconds: float) -> None:
    import torch
    import torch.distributed as dist

    work = dist.all_reduce(torch.zeros(1), group=_waiting[0] if _waiting else None, async_op=True)
    until = time.monotonic() + seconds
    # In short turns: Python handles no signal while it waits in torch.
    while not work.is_completed() and time.monotonic() < until:
        time.sleep(0.02)
        if progress:
            progress.alive()
    if work.is_completed():
        work.wait()


__all__ = [
    "any_of",
    "from_first",
    "gathered",
    "is_first",
    "join",
    "leads_node",
    "once_per_node",
    "peer_errors",
    "rank",
    "release",
    "size",
    "total",
    "wait",
]
