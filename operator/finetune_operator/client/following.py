"""Follows a FineTuneJob across closed watches and restarts of the API server, and decides when to stop."""

from __future__ import annotations

import time
from collections.abc import Iterator

from finetune_operator.api import ConditionType, FineTuneJob
from finetune_operator.client.errors import ClusterUnavailable, LoginRequired, WaitTimeout
from finetune_operator.client.resources import Resource

MAX_OUTAGE_SECONDS = 300
"""Time after which an API server that does not respond is an error."""
_WATCH_SECONDS = 60
_RETRY_SECONDS = 1.0
_TERMINAL_CONDITIONS = (ConditionType.COMPLETE, ConditionType.FAILED, ConditionType.CANCELLED)


def wait_condition_of(job: FineTuneJob) -> str | None:
    """Return the condition that ends `Client.wait`: `Complete`, `Failed`, `Cancelled` or `Suspended`, or None.

    `Suspended` counts only for the current generation of the spec, because a resumed run has it until the operator has
    seen the change. The others are final: the operator does not renew them when the spec changes later.
    """
    conditions = {each.type: each for each in (job.status.conditions if job.status else []) if each.status == "True"}
    for condition_type in _TERMINAL_CONDITIONS:
        if condition_type in conditions:
            return condition_type.value
    suspended = conditions.get(ConditionType.SUSPENDED)
    is_current = suspended is not None and suspended.observed_generation >= job.metadata.generation
    return ConditionType.SUSPENDED.value if is_current else None


class JobFollower:
    """Yields a FineTuneJob as it is and after each change.

    Args:
        jobs: the FineTuneJobs of a namespace.
        name: name of the FineTuneJob.
        timeout_seconds: time after which `WaitTimeout` is raised; None: never.
    """

    def __init__(self, jobs: Resource[FineTuneJob], name: str, timeout_seconds: float | None = None) -> None:
        self._jobs = jobs
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._last_response_time: float | None = None

    def __iter__(self) -> Iterator[FineTuneJob]:
        while True:
            try:
                for job in self._read_and_watch():
                    self._last_response_time = time.monotonic()
                    yield job
            except LoginRequired:
                raise
            except ClusterUnavailable:
                if self._is_outage_too_long():
                    raise
            self._check_deadline()
            time.sleep(min(_RETRY_SECONDS, self._get_remaining_seconds()))

    def _read_and_watch(self) -> Iterator[FineTuneJob]:
        job = self._jobs.get(self._name)
        yield job
        self._check_deadline()
        watch_seconds = max(1, min(_WATCH_SECONDS, int(self._get_remaining_seconds())))
        for changed in self._jobs.watch(self._name, watch_seconds):
            if changed != job:  # a watch begins with the object as it is
                job = changed
                yield job
        self._last_response_time = time.monotonic()

    def _is_outage_too_long(self) -> bool:
        """Return whether the API server has never responded, or not for long."""
        last_time = self._last_response_time
        return last_time is None or time.monotonic() - last_time > MAX_OUTAGE_SECONDS

    def _get_remaining_seconds(self) -> float:
        return max(0.0, self._deadline - time.monotonic()) if self._deadline is not None else float(_WATCH_SECONDS)

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise WaitTimeout(f"FineTuneJob {self._name} has not ended after {self._timeout_seconds:g} seconds")
