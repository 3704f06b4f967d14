"""Results in S3, found by the name of a run or by their address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_USAGE
from finetune_cli.session import Session

if TYPE_CHECKING:
    from finetune_operator.client import ResultStore, StoredResult
    from finetune_trainer.contract import Storage

_S3_SCHEME = "s3://"


def is_address(source: str) -> bool:
    """Return whether the source of a result is an S3 prefix instead of the name of a run."""
    return source.startswith(_S3_SCHEME)


def read_result(session: Session, source: str) -> tuple[ResultStore, StoredResult]:
    """Return a result and its store. `source` is the name of a run, or the S3 prefix of a result."""
    if is_address(source):
        store = open_store(session)
        return store, store.read_result(source)
    if "/" in source:
        message = f"{source!r} is neither the name of a run nor the S3 prefix of a result (s3://bucket/prefix)"
        raise CommandError(message, EXIT_USAGE)
    job = session.client.jobs.get(source)
    result = job.status.result if job.status else None
    if result is None:
        phase = job.status.phase if job.status and job.status.phase else "Pending"
        raise CommandError(f"{source} has no published result: it is {phase}")
    store = session.client.result_store(job)
    return store, store.read_result(result.adapter_uri, result.digest)


def open_store(session: Session, storage: Storage | None = None) -> ResultStore:
    """Return a store that this machine reaches at `--endpoint`, or else at the endpoint of `storage`."""
    from finetune_operator.client import ResultStore
    from finetune_trainer.contract import Storage

    known = storage.model_dump(include=set(Storage.model_fields)) if storage else {}
    endpoint = session.options.endpoint
    return ResultStore(Storage(**{**known, "endpoint": endpoint} if endpoint else known))
