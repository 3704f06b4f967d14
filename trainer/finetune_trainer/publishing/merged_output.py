"""The output of the merged model, below that of its adapter. Its manifest is written last and completes it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from finetune_trainer.config.run_id import get_run_id
from finetune_trainer.contract import Model, Reason, Signing
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing import signing
from finetune_trainer.publishing.uploads import Uploads
from finetune_trainer.records.manifest import MANIFEST_NAME, MERGED_PREFIX, FileRecord, MergedLosses, MergedManifest
from finetune_trainer.storage import S3, Location, delete_objects, put_bytes, put_if_absent, read_object
from finetune_trainer.telemetry.progress import current_timestamp

log = logging.getLogger(__name__)


MERGE_ATTEMPTS_NAME = ".merging.json"
_MAX_ATTEMPTS = 2


class MergeAttempts(Model):
    """`.merging.json` next to the adapter: number of attempts of a run that have begun to merge."""

    model_config = ConfigDict(extra="ignore")

    run_id: str
    attempts: int

    def to_bytes(self) -> bytes:
        """Serialize the record as it is stored."""
        return self.model_dump_json(by_alias=True).encode()


class MergedOutput:
    """The folder `merged/` of one adapter."""

    def __init__(
        self, s3: S3, output: Location, uploads: Uploads, adapter_digest: str, signing_config: Signing | None
    ) -> None:
        self._s3 = s3
        self._manifest_location = output.child(MERGED_PREFIX).child(MANIFEST_NAME)
        self._attempts_location = output.child(MERGE_ATTEMPTS_NAME)
        self._uploads = uploads
        self._adapter_digest = adapter_digest
        self._signing_config = signing_config
        self.uri = str(output.child(MERGED_PREFIX)).rstrip("/")

    def is_complete(self) -> bool:
        """Return whether the merged model of this adapter is published."""
        content = read_object(self._s3, self._manifest_location)
        try:
            return (
                bool(content)
                and MergedManifest.model_validate_json(content or b"").adapter_digest == self._adapter_digest
            )
        except ValidationError:
            return False

    def check_foreign_files(self) -> None:
        """Raise `OUTPUT_EXISTS` if publishing might replace files of others."""
        names = self._uploads.list_foreign_files(MERGED_PREFIX)
        if names:
            message = f"{self.uri} contains files that this run has not published, such as {names[0]}; remove them"
            raise TrainerError(Reason.OUTPUT_EXISTS, message)

    @contextmanager
    def count_attempt(self) -> Iterator[None]:
        """Count an attempt in the block. The count remains only if the process is killed.

        Raises `OUT_OF_MEMORY` after two such attempts of this run, so that a run whose merged model does not fit into
        memory ends with its adapter and does not fail.
        """
        previous = self._read_attempts()
        if previous.run_id == get_run_id() and previous.attempts >= _MAX_ATTEMPTS:
            delete_objects(self._s3, [self._attempts_location])
            message = (
                f"{_MAX_ATTEMPTS} attempts were killed while they merged; increase the memory in compute.resources"
            )
            raise TrainerError(Reason.OUT_OF_MEMORY, message)
        attempts = previous.attempts + 1 if previous.run_id == get_run_id() else 1
        put_bytes(self._s3, self._attempts_location, MergeAttempts(run_id=get_run_id(), attempts=attempts).to_bytes())
        try:
            yield
        finally:
            self._remove_attempts()

    def _read_attempts(self) -> MergeAttempts:
        try:
            return MergeAttempts.model_validate_json(read_object(self._s3, self._attempts_location) or b"")
        except ValidationError:
            return MergeAttempts(run_id="", attempts=0)

    def _remove_attempts(self) -> None:
        try:
            delete_objects(self._s3, [self._attempts_location])
        except TrainerError as error:
            log.warning("publish: could not remove %s: %s", self._attempts_location, error.message)

    def publish(self, folder: Path, precision: str, losses: dict[str, MergedLosses]) -> None:
        """Upload the files of `folder` and their manifest. If that fails, the files are removed."""
        self.check_foreign_files()
        try:
            self._upload(folder, precision, losses)
        except Exception:
            self._try_withdraw()
            raise

    def _upload(self, folder: Path, precision: str, losses: dict[str, MergedLosses]) -> None:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        self._uploads.announce([FileRecord.from_path(path, MERGED_PREFIX + path.name) for path in paths])
        uploaded = [self._uploads.upload_file(path, MERGED_PREFIX + path.name) for path in paths]
        content = MergedManifest(
            created_at=current_timestamp(),
            adapter_digest=self._adapter_digest,
            precision=precision,
            losses=losses,
            files=[file.model_copy(update={"path": file.path.removeprefix(MERGED_PREFIX)}) for file in uploaded],
        ).to_bytes()
        if self._signing_config:
            (folder / MANIFEST_NAME).write_bytes(content)
            uploaded.append(
                self._uploads.announce_and_upload(
                    signing.sign_folder(folder, self._signing_config), MERGED_PREFIX + signing.SIGNATURE_NAME
                )
            )
        self._uploads.verify(uploaded)
        self._put_manifest(content)
        log.info("publish: merged model, %d bytes, at %s", sum(file.size for file in uploaded), self.uri)

    def _put_manifest(self, content: bytes) -> None:
        self._uploads.check_lock()
        if not put_if_absent(self._s3, self._manifest_location, content) and not self.is_complete():
            message = f"{self._manifest_location} was written by another process meanwhile; remove it"
            raise TrainerError(Reason.OUTPUT_EXISTS, message)
        self._uploads.try_remove_record()

    def _try_withdraw(self) -> None:
        """Remove uploaded files as far as possible. The record of uploads tells the next attempt about the rest."""
        try:
            if read_object(self._s3, self._manifest_location) is None:
                self._uploads.withdraw(MERGED_PREFIX)
        except TrainerError as error:
            log.warning("publish: could not remove files of the merged model in %s: %s", self.uri, error.message)
