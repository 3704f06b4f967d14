"""The merged model's place below the adapter's: it is whole once its own manifest, written last, is there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from finetune_trainer.contract import Model, Reason, Signing
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing import signing
from finetune_trainer.publishing.output_lock import run_id
from finetune_trainer.publishing.uploads import Uploads
from finetune_trainer.records.manifest import MANIFEST_NAME, MERGED, FileRecord, MergedLosses, MergedManifest
from finetune_trainer.storage import S3, Location, put_bytes, put_if_absent, read, remove
from finetune_trainer.telemetry.progress import now

log = logging.getLogger(__name__)


ATTEMPTS_NAME = ".merging.json"
_ATTEMPTS = 2


class Begun(Model):
    """`.merging.json`, beside the adapter: attempts of a run that have begun to make the merged model."""

    model_config = ConfigDict(extra="ignore")

    run_id: str
    attempts: int

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return self.model_dump_json(by_alias=True).encode()


class MergedOutput:
    """`merged/` of one adapter."""

    def __init__(
        self, s3: S3, output: Location, uploads: Uploads, adapter_digest: str, asked_signing: Signing | None
    ) -> None:
        self._s3 = s3
        self._manifest = output.below(MERGED).below(MANIFEST_NAME)
        self._attempts = output.below(ATTEMPTS_NAME)
        self._uploads = uploads
        self._adapter_digest = adapter_digest
        self._signing = asked_signing
        self.uri = str(output.below(MERGED)).rstrip("/")

    def is_whole(self) -> bool:
        """Whether the merged model of this very adapter is published."""
        content = read(self._s3, self._manifest)
        try:
            return (
                bool(content)
                and MergedManifest.model_validate_json(content or b"").adapter_digest == self._adapter_digest
            )
        except ValidationError:
            return False

    def check_foreign(self) -> None:
        """Raise `OUTPUT_EXISTS` if publishing might replace files of somebody else."""
        names = self._uploads.foreign(MERGED)
        if names:
            message = f"{self.uri} holds files that this run has not published, such as {names[0]}; remove them"
            raise TrainerError(Reason.OUTPUT_EXISTS, message)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count an attempt, and forget it unless the process dies in this block.

        Raises `OUT_OF_MEMORY` if earlier attempts of this run did, so that a run whose merged model does not fit into
        memory ends with its adapter and not as failed.
        """
        begun = self._begun()
        if begun.run_id == run_id() and begun.attempts >= _ATTEMPTS:
            remove(self._s3, [self._attempts])
            message = f"{_ATTEMPTS} attempts were killed while they made it; raise the memory in compute.resources"
            raise TrainerError(Reason.OUT_OF_MEMORY, message)
        attempts = begun.attempts + 1 if begun.run_id == run_id() else 1
        put_bytes(self._s3, self._attempts, Begun(run_id=run_id(), attempts=attempts).to_bytes())
        try:
            yield
        finally:
            self._forget()

    def _begun(self) -> Begun:
        try:
            return Begun.model_validate_json(read(self._s3, self._attempts) or b"")
        except ValidationError:
            return Begun(run_id="", attempts=0)

    def _forget(self) -> None:
        try:
            remove(self._s3, [self._attempts])
        except TrainerError as error:
            log.warning("publish: %s is left behind: %s", self._attempts, error.message)

    def publish(self, folder: Path, precision: str, losses: dict[str, MergedLosses]) -> None:
        """Upload the files of `folder` and their manifest; if that fails, nothing of it stays."""
        self.check_foreign()
        try:
            self._upload(folder, precision, losses)
        except Exception:
            self._withdraw()
            raise

    def _upload(self, folder: Path, precision: str, losses: dict[str, MergedLosses]) -> None:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        self._uploads.announce([FileRecord.of(path, MERGED + path.name) for path in paths])
        sent = [self._uploads.put(path, MERGED + path.name) for path in paths]
        content = MergedManifest(
            created_at=now(),
            adapter_digest=self._adapter_digest,
            precision=precision,
            losses=losses,
            files=[file.model_copy(update={"path": file.path.removeprefix(MERGED)}) for file in sent],
        ).to_bytes()
        if self._signing:
            (folder / MANIFEST_NAME).write_bytes(content)
            sent.append(self._uploads.add(signing.sign(folder, self._signing), MERGED + signing.SIGNATURE_NAME))
        self._uploads.verify(sent)
        self._finish(content)
        log.info("publish: the merged model, %d bytes, is at %s", sum(file.size for file in sent), self.uri)

    def _finish(self, content: bytes) -> None:
        self._uploads.check()
        if not put_if_absent(self._s3, self._manifest, content) and not self.is_whole():
            message = f"{self._manifest} was written by somebody else meanwhile; remove it"
            raise TrainerError(Reason.OUTPUT_EXISTS, message)
        self._uploads.close_quietly()

    def _withdraw(self) -> None:
        """As far as possible. What stays is recorded, so that the next attempt knows whose it is."""
        try:
            if read(self._s3, self._manifest) is None:
                self._uploads.withdraw(MERGED)
        except TrainerError as error:
            log.warning("publish: files of the merged model are left behind in %s: %s", self.uri, error.message)
