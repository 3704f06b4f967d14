"""Reads published results from S3, with the user's own credentials."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from finetune_operator.api import FineTuneJob
from finetune_operator.client.errors import ResultUnavailable
from finetune_operator.client.storage_access import StoreReader, locate, shown
from finetune_trainer.contract import Storage
from finetune_trainer.records.evaluation import EVALUATION_NAME, EvaluationReport
from finetune_trainer.records.manifest import (
    MANIFEST_NAME,
    REPORT_NAME,
    ROW_SCORES_NAME,
    AdapterManifest,
    FileRecord,
    compute_digest,
)

if TYPE_CHECKING:
    from finetune_trainer.evaluation.paired_results import EvaluatedRow

ENDPOINT_ENV = "FINETUNE_S3_ENDPOINT"
"""Variable with the address of the store as the user reaches it, if that of the spec works in the cluster only."""
MAX_REPORT_BYTES = 64 * 2**20
MAX_LOG_BYTES = 64 * 2**20
_MAX_ROWS_BYTES = 256 * 2**20


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
        self.reader = StoreReader(storage)
        """Reads any object of the store."""

    @classmethod
    def for_job(cls, job: FineTuneJob, endpoint: str | None = None) -> ResultStore:
        """Return the store of a run. `endpoint`, or else `$FINETUNE_S3_ENDPOINT`, replaces that of the spec."""
        names = set(Storage.model_fields)
        fields = {name: value for name, value in job.spec.storage if name in names}
        reachable_endpoint = endpoint or os.environ.get(ENDPOINT_ENV)
        if reachable_endpoint:
            fields["endpoint"] = reachable_endpoint
        try:
            return cls(Storage(**fields))
        except ValidationError:
            message = f"endpoint {shown(str(fields['endpoint']))} is not a URL like https://s3.example.com"
            raise ResultUnavailable(message) from None

    def read_result(self, uri: str, expected_digest: str | None = None) -> StoredResult:
        """Return the result at an S3 prefix. With a digest, a result that has replaced it is an error."""
        locate(f"{uri.removesuffix('/')}/")  # an invalid URI is named as it was given
        prefix = uri.rstrip("/")
        content = self.read_manifest(prefix)
        digest = compute_digest(content)
        if expected_digest and digest != expected_digest:
            raise ResultUnavailable(
                f"{shown(prefix)}: another result has replaced that of the run ({digest}, not {expected_digest})"
            )
        try:
            return StoredResult(prefix, AdapterManifest.model_validate_json(content), digest)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            field = ".".join(map(str, detail["loc"]))
            problem = shown(f"{field}: {detail['msg']}" if field else str(detail["msg"]))
            found = f" (it is {shown(str(detail['input']))[:60]})" if isinstance(detail["input"], str | int) else ""
            raise ResultUnavailable(
                f"{shown(prefix)}/{MANIFEST_NAME} cannot be read: {problem}{found if field else ''}; it is damaged, or "
                "of another version, which the finetune of that version reads"
            ) from None

    def read_manifest(self, uri: str) -> bytes:
        """Return the manifest at an S3 prefix as it is stored."""
        content = self.reader.read_small(f"{uri.rstrip('/')}/{MANIFEST_NAME}")
        if content is None:
            raise ResultUnavailable(
                f"{shown(uri)} has no complete result: {MANIFEST_NAME}, which is written last, does not exist; check "
                "the URI, or wait until the run is complete"
            )
        return content

    def read_file(self, result: StoredResult, name: str, max_bytes: int = MAX_REPORT_BYTES) -> bytes:
        """Return a published file whose content has the digest in the manifest."""
        from finetune_trainer.storage import find_name_problem

        record = result.manifest.find_file(name)
        if record is None:
            raise ResultUnavailable(f"{shown(result.uri)} has no file {shown(name)}")
        problem = find_name_problem(name)
        if problem:
            raise ResultUnavailable(f"{shown(result.uri)}: the manifest names a file {shown(name)}: {problem}")
        content = self.reader.read(f"{result.uri}/{name}", max_bytes)
        _check_content(result, record, content)
        return content

    def read_report(self, result: StoredResult) -> bytes:
        """Return `report.html`."""
        return self.read_file(result, REPORT_NAME)

    def read_evaluation(self, result: StoredResult) -> EvaluationReport | None:
        """Return `evaluation.json`, or None if the result has none or it is of a version that cannot be read."""
        if result.manifest.find_file(EVALUATION_NAME) is None:
            return None
        try:
            return EvaluationReport.model_validate_json(self.read_file(result, EVALUATION_NAME))
        except ValidationError:
            return None

    def read_rows(self, result: StoredResult) -> list[EvaluatedRow]:
        """Return the rows of `evaluation.jsonl`, or an empty list if the result has none."""
        from finetune_trainer.evaluation.paired_results import parse_row

        if result.manifest.find_file(ROW_SCORES_NAME) is None:
            return []
        content = self.read_file(result, ROW_SCORES_NAME, _MAX_ROWS_BYTES)
        try:
            return [parse_row(line) for line in content.splitlines() if line]
        except ValueError:
            message = f"{shown(result.uri)}/{ROW_SCORES_NAME} has a row that this version cannot read; update finetune"
            raise ResultUnavailable(message) from None

    def read_object(self, uri: str, max_bytes: int = MAX_REPORT_BYTES) -> bytes:
        """Return an object that no manifest lists."""
        return self.reader.read(uri, max_bytes)

    def read_text(self, uri: str, max_bytes: int = MAX_LOG_BYTES) -> str:
        """Return an object as text, such as the log of a run. Of a longer object, the end is returned."""
        return self.reader.read_end(uri, max_bytes).decode(errors="replace")

    def download(
        self, result: StoredResult, folder: Path, on_bytes: Callable[[int], None] = lambda size: None
    ) -> list[Path]:
        """Download all published files and the manifest into a folder, and compare their digests. Returns their paths.

        Files appear under their names only when all are complete. Equal files of an earlier download are kept; a folder
        with anything else is an error. `on_bytes` is called with the size of each part.
        """
        from finetune_operator.client.downloading import download_result

        manifest = self.read_manifest(result.uri)
        if compute_digest(manifest) != result.digest:
            raise ResultUnavailable(f"{shown(result.uri)}: another run has replaced the result; read it again")
        return download_result(self.reader, result, manifest, folder, on_bytes)

    def find_results(self, prefix: str) -> Iterator[StoredResult]:
        """Yield the results below an S3 prefix, which may have the placeholders of `output.uri`. Manifests that cannot
        be read are left out, and so is what is deeper than 8 folders or after the first 10,000 folders."""
        from finetune_operator.client.searching import find_result_uris

        for uri in find_result_uris(self.reader, prefix):
            try:
                yield self.read_result(uri)
            except ResultUnavailable:
                continue


def _check_content(result: StoredResult, record: FileRecord, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise ResultUnavailable(
            f"{shown(result.uri)}/{shown(record.path)} is damaged or was replaced: its digest is not that in the "
            f"{MANIFEST_NAME}; run the FineTuneJob again"
        )
