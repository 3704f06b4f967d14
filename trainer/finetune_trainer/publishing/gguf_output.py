"""The GGUF files of a result, in `gguf/` below its adapter. Their manifest is written last and completes them."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.contract import GgufType, Reason, Signing
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing import signing
from finetune_trainer.publishing.attempts import AttemptCounter
from finetune_trainer.publishing.gguf_converter import CONVERTER
from finetune_trainer.publishing.uploads import Uploads
from finetune_trainer.records.gguf import GGUF_PREFIX, GgufManifest
from finetune_trainer.records.manifest import MANIFEST_NAME, FileRecord
from finetune_trainer.storage import S3, Location, put_if_absent, read_object
from finetune_trainer.telemetry.progress import current_timestamp

log = logging.getLogger(__name__)

GGUF_ATTEMPTS_NAME = ".converting.json"


class GgufOutput:
    """The folder `gguf/` of one adapter."""

    def __init__(
        self, s3: S3, output: Location, uploads: Uploads, adapter_digest: str, signing_config: Signing | None
    ) -> None:
        self._s3 = s3
        self._manifest_location = output.child(GGUF_PREFIX).child(MANIFEST_NAME)
        self._uploads = uploads
        self._adapter_digest = adapter_digest
        self._signing_config = signing_config
        self.attempts = AttemptCounter(s3, output.child(GGUF_ATTEMPTS_NAME), "converted to GGUF")
        self.uri = str(output.child(GGUF_PREFIX)).rstrip("/")

    def is_complete(self, gguf_type: GgufType, names: set[str]) -> bool:
        """Return whether these files of this adapter are published in this type, or known to be impossible."""
        manifest = self._read_manifest()
        return (
            manifest is not None
            and (manifest.adapter_digest, manifest.type) == (self._adapter_digest, gguf_type)
            and names <= {*(file.path for file in manifest.files), *manifest.missing}
        )

    def check_vacant(self) -> None:
        """Raise `OUTPUT_EXISTS` if publishing might replace other GGUF files, or files of others."""
        manifest = self._read_manifest()
        if manifest is not None or read_object(self._s3, self._manifest_location) is not None:
            content = f"GGUF files of type {manifest.type}" if manifest else f"a {MANIFEST_NAME} that is not valid"
            message = f"{self.uri} contains {content}; they are never overwritten: remove them, or export to a folder"
            raise TrainerError(Reason.OUTPUT_EXISTS, message)
        names = self._uploads.list_foreign_files(GGUF_PREFIX)
        if names:
            message = f"{self.uri} contains files that this run has not published, such as {names[0]}; remove them"
            raise TrainerError(Reason.OUTPUT_EXISTS, message)

    def publish(self, folder: Path, gguf_type: GgufType, missing: dict[str, str]) -> None:
        """Upload the files of `folder` and their manifest. If that fails, the files are removed.

        `missing` says why requested files cannot be made, by their names.
        """
        self.check_vacant()
        try:
            self._upload(folder, gguf_type, missing)
        except Exception:
            self._try_withdraw()
            raise

    def _upload(self, folder: Path, gguf_type: GgufType, missing: dict[str, str]) -> None:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        files = [FileRecord.from_path(path, path.name) for path in paths]
        self._uploads.announce([file.model_copy(update={"path": GGUF_PREFIX + file.path}) for file in files])
        uploaded = [self._uploads.upload_file(path, GGUF_PREFIX + path.name) for path in paths]
        content = GgufManifest(
            created_at=current_timestamp(),
            adapter_digest=self._adapter_digest,
            type=gguf_type,
            converter=CONVERTER,
            files=files,
            missing=missing,
        ).to_bytes()
        if self._signing_config:
            (folder / MANIFEST_NAME).write_bytes(content)
            signature = signing.sign_folder(folder, self._signing_config)
            uploaded.append(self._uploads.announce_and_upload(signature, GGUF_PREFIX + signing.SIGNATURE_NAME))
        self._uploads.verify(uploaded)
        self._put_manifest(content)
        log.info("publish: GGUF files, %d bytes, at %s", sum(file.size for file in uploaded), self.uri)

    def _put_manifest(self, content: bytes) -> None:
        self._uploads.check_lock()
        is_created = put_if_absent(self._s3, self._manifest_location, content)
        if not is_created and read_object(self._s3, self._manifest_location) != content:
            message = f"{self._manifest_location} was written by another process meanwhile; remove it"
            raise TrainerError(Reason.OUTPUT_EXISTS, message)
        self._uploads.try_remove_record()

    def _read_manifest(self) -> GgufManifest | None:
        try:
            return GgufManifest.model_validate_json(read_object(self._s3, self._manifest_location) or b"")
        except ValidationError:
            return None

    def _try_withdraw(self) -> None:
        """Remove uploaded files as far as possible. The record of uploads tells the next attempt about the rest."""
        try:
            if read_object(self._s3, self._manifest_location) is None:
                self._uploads.withdraw(GGUF_PREFIX)
        except TrainerError as error:
            log.warning("publish: could not remove GGUF files in %s: %s", self.uri, error.message)
