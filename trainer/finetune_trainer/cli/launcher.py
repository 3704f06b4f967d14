"""Starts the workers of this node by torchrun's own agent, and makes one outcome of what they say.

The agent runs in a thread: while nodes meet, torch waits where Python handles no signal, and the agent's own handling
of SIGTERM would leave the workers half a minute to save their work.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import ValidationError

from finetune_trainer.contract import PROCESSES_ENV, ExitCode, Outcome, Reason
from finetune_trainer.distributed.topology import FOLDER_ENV, Layout, asked
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.shutdown import StopRequest, deferred
from finetune_trainer.telemetry.termination_message import Known

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

log = logging.getLogger(__name__)

MEETING_ENV = "FINETUNE_RENDEZVOUS_SECONDS"
"""Seconds that the workers of all nodes have to come together."""
_MEETING_SECONDS = "900"
_SPARE_SECONDS = 5.0
"""More than the workers have to save their work in."""
_CONSEQUENCES = (Reason.PREEMPTED, Reason.PEER_LOST)
"""Ends of a worker that follow from another's."""


@dataclass
class Ended:
    """How the agent's work ended: exit statuses of the workers that failed first, or why none was started."""

    first: dict[int, int] = field(default_factory=dict)
    error: RuntimeError | None = None


def launch(scratch: Path, known: Known, arguments: Sequence[str]) -> Outcome:
    """Run `finetune-trainer` with these arguments in each worker of this node."""
    layout = asked()
    config = _config(layout)
    where = f"{layout.workers} on {layout.nodes} nodes, this is node {layout.node}"
    log.info("workers: %s; they meet at %s", where, layout.rendezvous)
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as name:
        os.environ[FOLDER_ENV] = name
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // layout.per_node)))
        with deferred(known, _SPARE_SECONDS) as stop:
            ended = Ended()
            thread = threading.Thread(target=_launch, args=(config, arguments, ended), name="workers", daemon=True)
            thread.start()
            _accompany(thread, stop)
            said = dict(_said(Path(name)))
            _remember(known, said)
        return _summed_up(layout, said, ended)


def _accompany(agent: threading.Thread, stop: StopRequest) -> None:
    """Until the workers have ended; whoever tells this process to stop tells them."""
    told = False
    while agent.is_alive():
        if stop.made and not told:
            told = _pass_on()
            if not told:
                return  # they have not met yet, so there is nothing to save
        agent.join(0.1)


def _launch(config: LaunchConfig, arguments: Sequence[str], ended: Ended) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    # It would say that it handles no signals here, and repeat what the workers say.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", "finetune_trainer", *arguments)
    except ChildFailedError as error:
        begun = min(each.timestamp for each in error.failures.values())
        ended.first = {rank: each.exitcode for rank, each in error.failures.items() if each.timestamp == begun}
    except RuntimeError as error:  # of the meeting: no worker was started
        ended.error = error


def _config(layout: Layout) -> LaunchConfig:
    import torch
    from torch.distributed.launcher.api import LaunchConfig

    gpus = torch.cuda.device_count()
    if 0 < gpus < layout.per_node:
        message = f"{PROCESSES_ENV} asks for {layout.per_node} workers, with a GPU each, and {gpus} are visible"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    seconds = int(os.environ.get(MEETING_ENV, _MEETING_SECONDS))
    return LaunchConfig(
        min_nodes=layout.nodes,
        max_nodes=layout.nodes,
        nproc_per_node=layout.per_node,
        run_id="finetune",
        rdzv_backend="static",
        rdzv_endpoint=layout.rendezvous,
        rdzv_configs={"rank": layout.node, "timeout": seconds},
        max_restarts=0,  # Kubernetes starts all anew
        monitor_interval=0.2,
        virtual_local_rank=gpus > 0,  # each worker sees its own GPU alone
    )


def _pass_on() -> bool:
    """Tell the workers to stop; False if there are none yet."""
    import psutil

    workers = psutil.Process().children()
    for each in workers:
        try:
            each.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue
    return bool(workers)


def _said(folder: Path) -> Iterable[tuple[int, Outcome]]:
    """What each worker wrote at its end, by its number."""
    for path in sorted(folder.glob("outcome-*")):
        try:
            yield int(path.name.removeprefix("outcome-")), Outcome.model_validate_json(path.read_bytes())
        except ValidationError:
            continue  # it was killed while it wrote


def _remember(known: Known, said: Mapping[int, Outcome]) -> None:
    """How far the first worker came is how far the run came."""
    first = said.get(0)
    if first and first.progress:
        known.progress.update(**first.progress.model_dump())
        known.backend, known.dataset = first.backend, first.dataset


def _summed_up(layout: Layout, said: Mapping[int, Outcome], ended: Ended) -> Outcome:
    """The first worker's word if all is well, else the end that the others followed from."""
    if 0 in said and said[0].reason.exit_code is ExitCode.OK:
        return said[0]
    failed = [each for each in said.values() if each.reason.exit_code is not ExitCode.OK]
    causes = [each for each in failed if each.reason not in _CONSEQUENCES]
    silent = {rank: status for rank, status in ended.first.items() if rank not in said}
    if causes:
        return causes[0]
    if silent:
        return _without_a_word(*next(iter(silent.items())))
    if failed:
        return min(failed, key=lambda each: _CONSEQUENCES.index(each.reason))
    if said:
        return next(iter(said.values()))
    return _not_met(layout, ended)


def _without_a_word(rank: int, status: int) -> Outcome:
    if status == -signal.SIGABRT:  # NCCL's watchdog ends the process
        message = f"worker {rank} was aborted, as NCCL does when another worker cannot be reached; the log says more"
        return termination_message.make(Reason.PEER_LOST, message)
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    why = "; the kernel does that where memory is too small" if status == -signal.SIGKILL else ""
    message = f"worker {rank} ended with {how} and left no word{why}"
    return termination_message.make(Reason.INTERNAL_ERROR, message)


def _not_met(layout: Layout, ended: Ended) -> Outcome:
    """One node alone counts as failed, so that one attempt of all counts once."""
    if ended.error is None:
        return termination_message.make(Reason.INTERNAL_ERROR, "the workers could not be started; the log says more")
    said = str(ended.error).strip().partition("\n")[0]
    message = f"the {layout.nodes} nodes did not come together at {layout.rendezvous}: {said}"
    return termination_message.make(Reason.PEERS_MISSING if layout.node == 0 else Reason.PEER_LOST, message)
