"""Reads published results from S3, with the user's own credentials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_operator.api import FineTuneJob
from finetune_trainer.contract import Storage
from finetune_trainer.evaluation.paired_results import EvaluatedRow
from finetune_trainer.records.evaluation import EvaluationReport
from finetune_trainer.records.manifest import AdapterManifest

ENDPOINT_ENV = "FINETUNE_S3_ENDPOINT"
"""Variable with the address of the store as the user reaches it, if that of the spec works in the cluster only."""
MAX_REPORT_BYTES = 64 * 2**20
MAX_LOG_BYTES = 64 * 2**20


@dataclass(frozen=True)
class StoredResult:
    """A published result: where it is, its manifest, and the manifest's digest."""

    uri: str
    """S3 prefix without a slash at its end."""
    manifest: AdapterManifest
    digest: str
    """`sha256:…` of `manifest.json`, as in `status.result.digest`."""


class ResultStore:
    """The results in one S3 store. All methods raise `ResultUnavailable`, whose message names the object and what to
    do: a missing object, an incomplete or damaged result, expired keys, a denied access, an unreachable endpoint.

    Credentials are those that boto3 finds on the user's machine.
    """

    def __init__(self, storage: Storage) -> None:
        raise NotImplementedError

    @classmethod
    def for_job(cls, job: FineTuneJob, endpoint: str | None = None) -> ResultStore:
        """Return the store of a run. `endpoint`, or else `$FINETUNE_S3_ENDPOINT`, replaces that of the spec."""
        raise NotImplementedError

    def read_result(self, uri: str, expected_digest: str | None = None) -> StoredResult:
        """Return the result at an S3 prefix. With a digest, a result that has replaced it is an error."""
        raise NotImplementedError

    def read_file(self, result: StoredResult, name: str, max_bytes: int = MAX_REPORT_BYTES) -> bytes:
        """Return a published file whose content has the digest in the manifest."""
        raise NotImplementedError

    def read_report(self, result: StoredResult) -> bytes:
        """Return `report.html`."""
        raise NotImplementedError

    def read_evaluation(self, result: StoredResult) -> EvaluationReport | None:
        """Return `evaluation.json`, or None if the result has none or it is of a version that cannot be read."""
        raise NotImplementedError

    def read_rows(self, result: StoredResult) -> list[EvaluatedRow]:
        """Return the rows of `evaluation.jsonl`, or an empty list if the result has none."""
        raise NotImplementedError

    def read_text(self, uri: str, max_bytes: int = MAX_LOG_BYTES) -> str:
        """Return an object as text, such as the log of a run. Of a longer object, the end is returned."""
        raise NotImplementedError

    def download(self, result: StoredResult, folder: Path, on_bytes: Callable[[int], None]) -> list[Path]:
        """Download all published files into a folder and compare their digests. Returns their paths.

        Files appear under their names only when complete. `on_bytes` is called with the size of each part.
        """
        raise NotImplementedError

    def find_results(self, prefix: str) -> Iterator[StoredResult]:
        """Yield the results below an S3 prefix. Manifests that cannot be read are left out."""
        raise NotImplementedError
