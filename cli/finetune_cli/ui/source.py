"""Everything that the pages show, read through the client and cached."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from finetune_cli.ui.cache import TimedCache
from finetune_cli.ui.losses import LossHistory
from finetune_operator.api import FineTuneJob
from finetune_operator.api.schedule import FineTuneSchedule
from finetune_operator.api.sweep import FineTuneSweep
from finetune_operator.client import (
    Client,
    ClientError,
    Event,
    Forbidden,
    Resource,
    ResultStore,
    ResultUnavailable,
    RunSummary,
    StoredResult,
    summarize_job,
    summarize_result,
)
from finetune_operator.client.parsing import parse_object
from finetune_trainer.contract import Storage
from finetune_trainer.evaluation.paired_results import EvaluatedRow
from finetune_trainer.records.evaluation import EvaluationReport
from finetune_trainer.telemetry.run_log import LOG_NAME

LIST_SECONDS = 2.0
"""The cluster is listed at most this often, however many tabs are open."""
DETAIL_SECONDS = 5.0
HISTORY_SECONDS = 60.0
RESULT_SECONDS = 300.0
"""Published results do not change; their digest is in the key."""
MAX_HISTORY = 500
MAX_LOG_LINES = 500
MAX_EVENTS = 100
MAX_PROBLEMS = 5
ValueT = TypeVar("ValueT")
KindT = TypeVar("KindT", FineTuneJob, FineTuneSchedule, FineTuneSweep)


@dataclass(frozen=True)
class Fetched(Generic[ValueT]):
    """A value, and one sentence for each thing that could not be read."""

    value: ValueT
    problems: Sequence[str] = field(default=())


class Run(NamedTuple):
    """A FineTuneJob and its summary."""

    job: FineTuneJob
    summary: RunSummary


class PastRun(NamedTuple):
    """A result in S3 and its summary."""

    result: StoredResult
    summary: RunSummary


class Comparable(NamedTuple):
    """What two runs are compared by."""

    result: StoredResult
    rows: list[EvaluatedRow]


class Connect(Protocol):
    """Creates the client of a namespace; of the kubeconfig's if it is None."""

    def __call__(self, namespace: str | None) -> Client: ...


class Source:
    """Reads the cluster and the store. Methods are called by several threads.

    Args:
        connect: creates the client of a namespace.
        namespace: the only namespace to show, or None for all that the user may read.
        prefixes: S3 prefixes below which results are searched.
        endpoint: the address of the store as this machine reaches it; by default that of each run.
    """

    def __init__(
        self, connect: Connect, namespace: str | None, prefixes: Sequence[str] = (), endpoint: str | None = None
    ) -> None:
        self._connect = connect
        self._namespace = namespace
        self._endpoint = endpoint
        self.prefixes = tuple(prefixes)
        """S3 prefixes of the history."""
        self._losses = LossHistory()
        self._cache: TimedCache[Any] = TimedCache()

    # Lists

    def list_runs(self) -> Fetched[list[Run]]:
        """Return the FineTuneJobs, the newest first."""
        return self._guard(self._cached(("runs",), self._load_runs, LIST_SECONDS), [])

    def list_schedules(self) -> Fetched[list[FineTuneSchedule]]:
        """Return the FineTuneSchedules, the newest first."""
        return self._guard(
            self._cached(
                ("schedules",), lambda: self._load(FineTuneSchedule, lambda each: each.schedules), LIST_SECONDS
            ),
            [],
        )

    def list_sweeps(self) -> Fetched[list[FineTuneSweep]]:
        """Return the FineTuneSweeps, the newest first."""

        def load() -> Fetched[list[FineTuneSweep]]:
            return self._load(FineTuneSweep, lambda client: client.sweeps)

        return self._guard(self._cached(("sweeps",), load, LIST_SECONDS), [])

    def list_history(self) -> Fetched[list[PastRun]]:
        """Return the results below the prefixes, the newest first, at most `MAX_HISTORY` of each."""
        lists = [self._find_results(prefix) for prefix in self.prefixes]
        found = [past_run for fetched in lists for past_run in fetched.value]
        problems = [problem for fetched in lists for problem in fetched.problems]
        return Fetched(sorted(found, key=lambda each: each.result.manifest.created_at, reverse=True), problems)

    # Details

    def list_events(self, namespace: str, name: str, kind: str) -> Fetched[list[Event]]:
        """Return the last Events about an object, the newest first."""

        def load() -> Fetched[list[Event]]:
            events = self._client(namespace).events(name, kind)
            return Fetched(list(reversed(events[-MAX_EVENTS:])))

        return self._guard(self._cached(("events", kind, namespace, name), load, DETAIL_SECONDS), [])

    def read_log(self, job: FineTuneJob) -> Fetched[list[str]]:
        """Return the last lines of a run's log."""

        def load() -> Fetched[list[str]]:
            client = self._client(job.metadata.namespace)
            return Fetched(list(deque(client.logs(job.metadata.name), MAX_LOG_LINES)))

        key = ("log", job.metadata.namespace, job.metadata.name)
        return self._guard(self._cached(key, load, DETAIL_SECONDS), [])

    def read_stored_log(self, past_run: PastRun) -> Fetched[list[str]]:
        """Return the last lines of the log beside a result."""
        uri = past_run.summary.log_uri or f"{past_run.result.uri}/{LOG_NAME}"

        def load() -> Fetched[list[str]]:
            return Fetched(self._history_store().read_text(uri).splitlines()[-MAX_LOG_LINES:])

        return self._guard(self._cached(("stored log", uri), load, HISTORY_SECONDS), [])

    def read_report(self, job: FineTuneJob) -> bytes:
        """Return the report of a run, also of one that the gate has rejected. Raises `ClientError`."""
        return self._client(job.metadata.namespace).report(job.metadata.name)

    def read_stored_report(self, past_run: PastRun) -> bytes:
        """Return the report of a result. Raises `ClientError`."""
        return self._history_store().read_report(past_run.result)

    def read_page(self, storage: Storage, uri: str) -> bytes:
        """Return the page of a schedule or a sweep. Raises `ClientError`."""
        return ResultStore(self._reach(storage)).read_text(uri).encode()

    def get_losses(self, job: FineTuneJob) -> EvaluationReport:
        """Return the losses of a run: those of its result, or those that this server has seen."""
        if job.status and job.status.result:
            fetched = self._guard(lambda: self._load_evaluation(job), None)
            if fetched.value:
                return fetched.value
        return self._losses.get_curves(job)

    def get_comparable(self, job: FineTuneJob) -> Comparable:
        """Return result and rows of a run. Raises `ClientError`."""
        return self._load_rows(self._store(job), self._read_result(job))

    def get_stored_comparable(self, past_run: PastRun) -> Comparable:
        """Return the rows of a result. Raises `ClientError`."""
        return self._load_rows(self._history_store(), past_run.result)

    # Loading

    def _load_runs(self) -> Fetched[list[Run]]:
        jobs = self._load(FineTuneJob, lambda each: each.jobs)
        for job in jobs.value:
            self._losses.record(job)
        return Fetched([Run(job, summarize_job(job)) for job in jobs.value], jobs.problems)

    def _load(self, kind: type[KindT], choose: Callable[[Client], Resource[KindT]]) -> Fetched[list[KindT]]:
        """List a kind in the namespace, or in all of them if the user may."""
        if self._namespace:
            return _parse(kind, choose(self._client(self._namespace)).list_bodies())
        client = self._client(None)
        resource = choose(client)
        try:
            return _parse(kind, resource.list_bodies(all_namespaces=True))
        except Forbidden:
            bodies = resource.list_bodies()
        note = f"You may list {resource.plural} of the namespace {client.namespace} only; others are not shown."
        parsed: Fetched[list[KindT]] = _parse(kind, bodies)
        return Fetched(parsed.value, [note, *parsed.problems])

    def _find_results(self, prefix: str) -> Fetched[list[PastRun]]:
        load = self._cached(("history", prefix), lambda: self._load_history(prefix), HISTORY_SECONDS)
        return self._guard(load, [])

    def _load_history(self, prefix: str) -> Fetched[list[PastRun]]:
        results = list(islice(self._history_store().find_results(prefix), MAX_HISTORY + 1))
        problem = f"There are more than {MAX_HISTORY} results below {prefix}; the others are not shown."
        past_runs = [PastRun(result, summarize_result(result)) for result in results[:MAX_HISTORY]]
        return Fetched(past_runs, [problem] if len(results) > MAX_HISTORY else [])

    def _read_result(self, job: FineTuneJob) -> StoredResult:
        result = job.status.result if job.status else None
        if result is None:
            raise ResultUnavailable(f"run {job.metadata.name} has no result yet")
        store = self._store(job)
        key = ("result", result.adapter_uri, result.digest)
        return self._cached(key, lambda: store.read_result(result.adapter_uri, result.digest), RESULT_SECONDS)()

    def _load_rows(self, store: ResultStore, result: StoredResult) -> Comparable:
        key = ("rows", result.uri, result.digest)
        return self._cached(key, lambda: Comparable(result, store.read_rows(result)), RESULT_SECONDS)()

    def _load_evaluation(self, job: FineTuneJob) -> Fetched[EvaluationReport | None]:
        result, store = self._read_result(job), self._store(job)
        key = ("evaluation", result.uri, result.digest)
        return Fetched(self._cached(key, lambda: store.read_evaluation(result), RESULT_SECONDS)())

    def _client(self, namespace: str | None) -> Client:
        key = ("client", namespace or "")
        return self._cached(key, lambda: self._connect(namespace), float("inf"))()

    def _store(self, job: FineTuneJob) -> ResultStore:
        return ResultStore.for_job(job, self._endpoint)

    def _history_store(self) -> ResultStore:
        return ResultStore(self._reach(Storage()))

    def _reach(self, storage: Storage) -> Storage:
        return storage.model_copy(update={"endpoint": self._endpoint}) if self._endpoint else storage

    def _cached(self, key: tuple[str, ...], load: Callable[[], ValueT], seconds: float) -> Callable[[], ValueT]:
        return lambda: self._cache.get(key, load, seconds)

    def _guard(self, load: Callable[[], Fetched[ValueT]], default: ValueT) -> Fetched[ValueT]:
        """Return what `load` returns, or its error as the problem."""
        try:
            return load()
        except ClientError as error:
            return Fetched(default, [str(error)])


def _parse(kind: type[KindT], bodies: Iterable[Mapping[str, Any]]) -> Fetched[list[KindT]]:
    """Parse objects. One that this version cannot read does not hide the others."""
    objects: list[KindT] = []
    problems: list[str] = []
    for body in bodies:
        try:
            objects.append(parse_object(kind, body))
        except ClientError as error:
            problems.append(str(error))
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS:] = [f"{len(problems) - MAX_PROBLEMS} more objects cannot be read."]
    return Fetched(objects, problems)
