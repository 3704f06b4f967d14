"""The published results that adapters of a run belong to: which one each is, and which rows its training held out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.contract import Baseline, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.manifest import (
    MANIFEST_NAME,
    ROW_SCORES_NAME,
    AdapterManifest,
    FileRecord,
    compute_digest,
)
from finetune_trainer.storage import (
    MODEL_ERRORS,
    S3,
    InputFile,
    Location,
    download_objects,
    find_objects,
    read_object,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchedResult:
    """What a run needs of an earlier result, on disk."""

    digest: str
    """`sha256:…` of its manifest."""
    validation_digest: str | None = None
    """`AdapterManifest.validation_digest`."""
    row_scores: Path | None = None
    """Its `evaluation.jsonl`, if it has one."""


@dataclass(frozen=True)
class EarlierResult:
    """The manifest of an earlier result in S3. Nothing else of it is downloaded yet."""

    s3: S3
    prefix: Location
    manifest: AdapterManifest
    digest: str
    """`sha256:…` of the manifest."""
    is_pinned: bool = False
    """Whether the config requires this digest."""

    @property
    def size(self) -> int:
        """Bytes to download."""
        return self._row_scores.size if self._row_scores else 0

    @property
    def _row_scores(self) -> FileRecord | None:
        return self.manifest.find_file(ROW_SCORES_NAME) if self.manifest.validation_digest else None

    def fetch(
        self, adapter_files: Sequence[InputFile], folder: Path, on_bytes: Callable[[int], None]
    ) -> FetchedResult | None:
        """Download the rest of the result. Return None if the adapter was changed after it was published.

        Raises `STORAGE_CORRUPT` for a changed adapter if the config requires the digest of the result.
        """
        changed = self.manifest.find_changed_file(adapter_files)
        if changed is None:
            row_scores = self._fetch_row_scores(folder, on_bytes)
            return FetchedResult(self.digest, self.manifest.validation_digest, row_scores)
        message = f"{changed.uri} does not match {MANIFEST_NAME}: it was changed after it was published"
        if self.is_pinned:
            raise TrainerError(Reason.STORAGE_CORRUPT, message)
        log.warning("inputs: %s, so the adapter is used like one without %s", message, MANIFEST_NAME)
        return None

    def _fetch_row_scores(self, folder: Path, on_bytes: Callable[[int], None]) -> Path | None:
        if self._row_scores is None:
            return None
        try:
            objects = find_objects(self.s3, self.prefix.child(ROW_SCORES_NAME), MODEL_ERRORS)
        except TrainerError as error:
            if error.reason is not Reason.MODEL_NOT_FOUND:
                raise
            log.warning("inputs: %s", error.message)
            return None
        (file,) = download_objects(self.s3, objects, folder, MODEL_ERRORS, on_bytes)
        return file.path if file.sha256 == self._row_scores.sha256 else None


def find_result(uri: str, s3: S3, baseline: Baseline | None = None) -> EarlierResult | None:
    """Return the result that is published at the URI of an adapter, or None if there is none.

    Raises `MODEL_INVALID` if it is not the one that `baseline` requires by its digest.
    """
    prefix = Location.parse_folder(uri)
    content, is_pinned = read_object(s3, prefix.child(MANIFEST_NAME)), bool(baseline and baseline.digest)
    if baseline and is_pinned:
        _check_digest(baseline, content)
    if content is None:
        return None
    try:
        manifest = AdapterManifest.model_validate_json(content)
    except ValidationError as error:
        if not (baseline and is_pinned):
            return None
        message = (
            f"{prefix.child(MANIFEST_NAME)} is not a manifest that this trainer can read; use its version or newer"
        )
        raise TrainerError(Reason.MODEL_INVALID, f"evaluation.baselines {baseline.name}: {message}") from error
    return EarlierResult(s3, prefix, manifest, compute_digest(content), is_pinned)


def _check_digest(baseline: Baseline, content: bytes | None) -> None:
    found = f"no {MANIFEST_NAME}" if content is None else f"a {MANIFEST_NAME} with the digest {compute_digest(content)}"
    if content is None or compute_digest(content) != baseline.digest:
        raise TrainerError(
            Reason.MODEL_INVALID,
            f"evaluation.baselines {baseline.name}: {baseline.adapter_uri} has {found}, and the required digest is "
            f"{baseline.digest}; set adapterURI and digest to the output.uri and the status.result.digest of one run, "
            "or remove digest to accept any adapter",
        )
