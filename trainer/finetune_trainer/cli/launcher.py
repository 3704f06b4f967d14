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
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from finetune_trainer.cli.rank_outcomes import AgentResult, combine_outcomes, read_outcomes
from finetune_trainer.cli.rank_watch import RankWatch
from finetune_trainer.contract import PROCESSES_ENV, Outcome, Reason
from finetune_trainer.distributed.topology import NODE_FOLDER_ENV, Topology, topology_from_env
from finetune_trainer.errors import TrainerError
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


def launch_ranks(scratch: Path, recorder: OutcomeRecorder, stall_seconds: float, arguments: Sequence[str]) -> Outcome:
    """Run `finetune-trainer` with these arguments once per rank of this node, and combine the outcomes of the ranks.

    Ranks that do not respond for `stall_seconds` are killed.
    """
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
            rank_watch = RankWatch(Path(node_folder), stall_seconds)
            agent_result = AgentResult(unresponsive=rank_watch.unresponsive)
            agent_thread = threading.Thread(
                target=_run_agent, args=(launch_config, arguments, agent_result), name="workers", daemon=True
            )
            agent_thread.start()
            _wait_for_agent(agent_thread, shutdown, rank_watch)
            outcomes = dict(read_outcomes(Path(node_folder)))
            if 0 in outcomes:
                recorder.record_rank_zero(outcomes[0])
        return combine_outcomes(topology, outcomes, agent_result)


def _wait_for_agent(agent_thread: threading.Thread, shutdown: GracefulShutdown, rank_watch: RankWatch) -> None:
    """Wait until the ranks have ended. Forwards a stop signal to them, and kills those that do not respond."""
    is_forwarded = False
    while agent_thread.is_alive():
        if shutdown.requested and not is_forwarded:
            is_forwarded = _forward_sigterm()
            if not is_forwarded:
                return  # no rank is running yet, so there is nothing to save
        rank_watch.check()
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
