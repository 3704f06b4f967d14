"""The output of the merged model, below that of its adapter. Its manifest is written last and completes it."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.contract import Reason, Signing
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing import signing
from finetune_trainer.publishing.attempts import AttemptCounter
from finetune_trainer.publishing.uploads import Uploads
from finetune_trainer.records.manifest import MANIFEST_NAME, MERGED_PREFIX, FileRecord, MergedLosses, MergedManifest
from finetune_trainer.storage import S3, Location, put_if_absent, read_object
from finetune_trainer.telemetry.progress import current_timestamp

log = logging.getLogger(__name__)


MERGE_ATTEMPTS_NAME = ".merging.json"


class MergedOutput:
    """The folder `merged/` of one adapter."""

    def __init__(
        self, s3: S3, output: Location, uploads: Uploads, adapter_digest: str, signing_config: Signing | None
    ) -> None:
        self._s3 = s3
        self._manifest_location = output.child(MERGED_PREFIX).child(MANIFEST_NAME)
        self._uploads = uploads
        self._adapter_digest = adapter_digest
        self._signing_config = signing_config
        self.attempts = AttemptCounter(s3, output.child(MERGE_ATTEMPTS_NAME), "merged")
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
