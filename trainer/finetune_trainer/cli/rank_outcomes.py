"""Combines the outcomes of the ranks of a node into the outcome of its pod."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.contract import ExitCode, Outcome, Reason
from finetune_trainer.distributed.topology import Topology
from finetune_trainer.telemetry import termination_message

_SECONDARY_REASONS = (Reason.PREEMPTED, Reason.PEER_LOST)
"""Reasons that usually follow from the failure of another rank."""


@dataclass
class AgentResult:
    """The end of the agent: exit statuses of the ranks that failed first, or the error of the rendezvous."""

    first_failures: dict[int, int] = field(default_factory=dict)
    rendezvous_error: RuntimeError | None = None
    unresponsive: dict[int, float] = field(default_factory=dict)
    """Ranks that the launcher has killed, because they did not respond for so many seconds."""


def read_outcomes(folder: Path) -> Iterator[tuple[int, Outcome]]:
    """Yield the outcomes that ranks wrote, by rank."""
    for path in sorted(folder.glob("outcome-*")):
        try:
            yield int(path.name.removeprefix("outcome-")), Outcome.model_validate_json(path.read_bytes())
        except ValidationError:
            continue  # the rank was killed while it wrote


def combine_outcomes(topology: Topology, outcomes: Mapping[int, Outcome], agent_result: AgentResult) -> Outcome:
    """Return the outcome of rank 0 if it succeeded, otherwise the outcome that caused the others, with its rank."""
    if 0 in outcomes and outcomes[0].reason.exit_code is ExitCode.OK:
        return outcomes[0]
    failures = {rank: each for rank, each in outcomes.items() if each.reason.exit_code is not ExitCode.OK}
    failures |= _build_silent_failures(outcomes, agent_result)
    if failures:
        first_rank = min(failures, key=lambda rank: _rank_cause(rank, failures[rank], outcomes, agent_result))
        return _name_rank(topology, first_rank, failures[first_rank])
    if outcomes:
        return next(iter(outcomes.values()))
    return _build_rendezvous_outcome(topology, agent_result)


def _rank_cause(
    rank: int, failure: Outcome, outcomes: Mapping[int, Outcome], agent_result: AgentResult
) -> tuple[int, bool, bool, int]:
    """Return the position of a failure among those that may have caused the others: the smallest is the cause."""
    is_secondary = failure.reason in _SECONDARY_REASONS
    order = 1 + _SECONDARY_REASONS.index(failure.reason) if is_secondary else 0
    is_later = rank not in agent_result.first_failures and rank not in agent_result.unresponsive
    return order, is_later, rank not in outcomes, rank


def _build_silent_failures(outcomes: Mapping[int, Outcome], agent_result: AgentResult) -> dict[int, Outcome]:
    """Return the failures of ranks that ended without an outcome, by rank."""
    silent_exits = {rank: status for rank, status in agent_result.first_failures.items() if rank not in outcomes}
    failures = {rank: _build_silent_exit_outcome(status) for rank, status in silent_exits.items()}
    for rank, seconds in agent_result.unresponsive.items():
        message = f"did not respond for {seconds:.0f} s (training.stallSeconds) and was killed"
        failures[rank] = termination_message.build_outcome(Reason.TRAINING_STALLED, message)
    return failures


def _build_silent_exit_outcome(exit_status: int) -> Outcome:
    if exit_status == -signal.SIGABRT:  # NCCL's watchdog ends the process
        message = "aborted, as NCCL does if it cannot reach another rank; see the log"
        return termination_message.build_outcome(Reason.PEER_LOST, message)
    ending = f"killed ({signal.Signals(-exit_status).name})" if exit_status < 0 else f"exited with code {exit_status}"
    hint = "; the kernel does that if memory runs out" if exit_status == -signal.SIGKILL else ""
    return termination_message.build_outcome(Reason.INTERNAL_ERROR, f"{ending} without reporting a reason{hint}")


def _name_rank(topology: Topology, rank: int, outcome: Outcome) -> Outcome:
    """Return the outcome with the rank, its node and the host of the node, which is the pod, in its message."""
    where = f"rank {rank} on node {topology.node_rank} ({socket.gethostname()})"
    message = termination_message.build_outcome(outcome.reason, f"{where}: {outcome.message}").message
    return outcome.model_copy(update={"message": message})


def _build_rendezvous_outcome(topology: Topology, agent_result: AgentResult) -> Outcome:
    """Build the outcome of a failed rendezvous. Only node 0 counts it, so that one attempt of all nodes counts once."""
    if agent_result.rendezvous_error is None:
        return termination_message.build_outcome(Reason.INTERNAL_ERROR, "the ranks could not be started; see the log")
    first_line = str(agent_result.rendezvous_error).strip().partition("\n")[0]
    message = f"rendezvous of {topology.node_count} nodes at {topology.rendezvous_endpoint} failed: {first_line}"
    return termination_message.build_outcome(
        Reason.PEERS_MISSING if topology.node_rank == 0 else Reason.PEER_LOST, message
    )
