"""Launcher: starts the ranks of this node with the agent of torchrun, and combines their outcomes into one.

The agent runs in a thread. During the rendezvous torch waits in code that handles no Python signals, and the agent's
own handler of SIGTERM would give the ranks only half a minute to save a checkpoint.
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
from finetune_trainer.distributed.topology import NODE_FOLDER_ENV, Topology, topology_from_env
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.shutdown import GracefulShutdown, defer_signals
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

log = logging.getLogger(__name__)

RENDEZVOUS_SECONDS_ENV = "FINETUNE_RENDEZVOUS_SECONDS"
"""Timeout in seconds for the rendezvous of all nodes."""
_DEFAULT_RENDEZVOUS_SECONDS = "900"
_EXTRA_GRACE_SECONDS = 5.0
"""Seconds of grace for the launcher in addition to that of its ranks, which it waits for."""
_SECONDARY_REASONS = (Reason.PREEMPTED, Reason.PEER_LOST)
"""Reasons that usually follow from the failure of another rank."""


@dataclass
class AgentResult:
    """The end of the agent: exit statuses of the ranks that failed first, or the error of the rendezvous."""

    first_failures: dict[int, int] = field(default_factory=dict)
    rendezvous_error: RuntimeError | None = None


def launch_ranks(scratch: Path, recorder: OutcomeRecorder, arguments: Sequence[str]) -> Outcome:
    """Run `finetune-trainer` with these arguments once per rank of this node, and combine the outcomes of the ranks."""
    topology = topology_from_env()
    launch_config = _build_launch_config(topology)
    log.info(
        "launcher: %d ranks on %d nodes, this is node %d; rendezvous at %s",
        topology.world_size,
        topology.node_count,
        topology.node_rank,
        topology.rendezvous_endpoint,
    )
    with TemporaryDirectory(prefix="finetune-", dir=scratch, ignore_cleanup_errors=True) as node_folder:
        os.environ[NODE_FOLDER_ENV] = node_folder
        threads = max(1, len(os.sched_getaffinity(0)) // topology.processes_per_node)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        with defer_signals(recorder, _EXTRA_GRACE_SECONDS) as shutdown:
            agent_result = AgentResult()
            agent_thread = threading.Thread(
                target=_run_agent, args=(launch_config, arguments, agent_result), name="workers", daemon=True
            )
            agent_thread.start()
            _wait_for_agent(agent_thread, shutdown)
            outcomes = dict(_read_outcomes(Path(node_folder)))
            if 0 in outcomes:
                recorder.record_rank_zero(outcomes[0])
        return _combine_outcomes(topology, outcomes, agent_result)


def _wait_for_agent(agent_thread: threading.Thread, shutdown: GracefulShutdown) -> None:
    """Wait until the ranks have ended. Forwards a stop signal to them."""
    is_forwarded = False
    while agent_thread.is_alive():
        if shutdown.requested and not is_forwarded:
            is_forwarded = _forward_sigterm()
            if not is_forwarded:
                return  # no rank is running yet, so there is nothing to save
        agent_thread.join(0.1)


def _run_agent(config: LaunchConfig, arguments: Sequence[str], agent_result: AgentResult) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    # It would warn that it handles no signals in a thread, and repeat the errors of the ranks.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", "finetune_trainer", *arguments)
    except ChildFailedError as error:
        first_timestamp = min(failure.timestamp for failure in error.failures.values())
        agent_result.first_failures = {
            rank: each.exitcode for rank, each in error.failures.items() if each.timestamp == first_timestamp
        }
    except RuntimeError as error:  # of the rendezvous: no rank was started
        agent_result.rendezvous_error = error


def _build_launch_config(topology: Topology) -> LaunchConfig:
    import torch
    from torch.distributed.launcher.api import LaunchConfig

    gpu_count = torch.cuda.device_count()
    if 0 < gpu_count < topology.processes_per_node:
        message = (
            f"{PROCESSES_ENV} requests {topology.processes_per_node} ranks with one GPU each, but "
            f"{gpu_count} GPUs are visible"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
    rendezvous_seconds = int(os.environ.get(RENDEZVOUS_SECONDS_ENV, _DEFAULT_RENDEZVOUS_SECONDS))
    return LaunchConfig(
        min_nodes=topology.node_count,
        max_nodes=topology.node_count,
        nproc_per_node=topology.processes_per_node,
        run_id="finetune",
        rdzv_backend="static",
        rdzv_endpoint=topology.rendezvous_endpoint,
        rdzv_configs={"rank": topology.node_rank, "timeout": rendezvous_seconds},
        max_restarts=0,  # Kubernetes restarts the pods
        monitor_interval=0.2,
        virtual_local_rank=gpu_count > 0,  # each rank sees only its own GPU
    )


def _forward_sigterm() -> bool:
    """Send SIGTERM to the ranks. Returns false if there are none yet."""
    import psutil

    processes = psutil.Process().children()
    for process in processes:
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue
    return bool(processes)


def _read_outcomes(folder: Path) -> Iterable[tuple[int, Outcome]]:
    """Yield the outcomes that ranks wrote, by rank."""
    for path in sorted(folder.glob("outcome-*")):
        try:
            yield int(path.name.removeprefix("outcome-")), Outcome.model_validate_json(path.read_bytes())
        except ValidationError:
            continue  # the rank was killed while it wrote


def _combine_outcomes(topology: Topology, outcomes: Mapping[int, Outcome], agent_result: AgentResult) -> Outcome:
    """Return the outcome of rank 0 if it succeeded, otherwise the outcome that caused the others."""
    if 0 in outcomes and outcomes[0].reason.exit_code is ExitCode.OK:
        return outcomes[0]
    failed_outcomes = [
        rank_outcome for rank_outcome in outcomes.values() if rank_outcome.reason.exit_code is not ExitCode.OK
    ]
    root_causes = [each for each in failed_outcomes if each.reason not in _SECONDARY_REASONS]
    silent_ranks = {rank: status for rank, status in agent_result.first_failures.items() if rank not in outcomes}
    if root_causes:
        return root_causes[0]
    if silent_ranks:
        return _build_silent_exit_outcome(*next(iter(silent_ranks.items())))
    if failed_outcomes:
        return min(failed_outcomes, key=lambda each: _SECONDARY_REASONS.index(each.reason))
    if outcomes:
        return next(iter(outcomes.values()))
    return _build_rendezvous_outcome(topology, agent_result)


def _build_silent_exit_outcome(rank: int, exit_status: int) -> Outcome:
    if exit_status == -signal.SIGABRT:  # NCCL's watchdog ends the process
        message = f"rank {rank} was aborted, as NCCL does if it cannot reach another rank; see the log"
        return termination_message.build_outcome(Reason.PEER_LOST, message)
    ending = (
        f"was killed ({signal.Signals(-exit_status).name})" if exit_status < 0 else f"exited with code {exit_status}"
    )
    hint = "; the kernel does that if memory runs out" if exit_status == -signal.SIGKILL else ""
    message = f"rank {rank} {ending} without reporting a reason{hint}"
    return termination_message.build_outcome(Reason.INTERNAL_ERROR, message)


def _build_rendezvous_outcome(topology: Topology, agent_result: AgentResult) -> Outcome:
    """Build the outcome of a failed rendezvous. Only node 0 counts it, so that one attempt of all nodes counts once."""
    if agent_result.rendezvous_error is None:
        return termination_message.build_outcome(Reason.INTERNAL_ERROR, "the ranks could not be started; see the log")
    first_line = str(agent_result.rendezvous_error).strip().partition("\n")[0]
    message = f"rendezvous of {topology.node_count} nodes at {topology.rendezvous_endpoint} failed: {first_line}"
    return termination_message.build_outcome(
        Reason.PEERS_MISSING if topology.node_rank == 0 else Reason.PEER_LOST, message
    )
