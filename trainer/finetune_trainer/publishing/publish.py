"""The output prefix: is this run's result there already, may we write, and at the end the files, manifest last.

The adapter is a result of its own. The merged model is published after it, below `merged/`, and has its own manifest.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.checkpoints.store import CheckpointStore, Origin
from finetune_trainer.contract import Outcome, Reason, TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.resolve import Located
from finetune_trainer.publishing import signing
from finetune_trainer.publishing.merged_output import ATTEMPTS_NAME, MergedOutput
from finetune_trainer.publishing.output_lock import Claim, clear, run_id
from finetune_trainer.publishing.published_result import Existing
from finetune_trainer.publishing.uploads import Uploads
from finetune_trainer.records.manifest import (
    MANIFEST_NAME,
    MERGED,
    REPORT_NAME,
    AdapterManifest,
    FileRecord,
    digest_of,
    installed_versions,
)
from finetune_trainer.storage import S3, Location, put_if_absent, read, remove
from finetune_trainer.telemetry.progress import ProgressReporter

log = logging.getLogger(__name__)

CONFIG_NAME = "finetune_config.json"
"""The config as run. Not `config.json`: beside an adapter, loaders would take that for a whole model's."""
REJECTED = ".rejected/"
"""Below the output: reports of models that did not pass `evaluation.gate`, by config digest."""
_MANIFEST_ATTEMPTS = 3
_NAMED = 3


class Output:
    """Where the run's result goes."""

    def __init__(self, s3: S3, config: TrainerConfig) -> None:
        self._s3 = s3
        self._config = config
        self._prefix = Location.folder(config.output.uri)
        self.uri = config.output.uri.rstrip("/")
        self.digest = _digest(config)
        """Of config and number of workers: what makes a result this run's."""
        self._uploads = Uploads(s3, self._prefix, self.digest)

    @contextmanager
    def claimed(self, progress: ProgressReporter) -> Iterator[Claim]:
        """Hold the output in this block: every file that is published is preceded by a look whether it is still ours.

        A missing bucket or a key that may not write is told here, not after the run.
        """
        claim = Claim(self._s3, self._prefix, run_id(), self.digest)
        claim.take(progress)
        self._uploads.check = claim.check
        try:
            yield claim
        finally:
            claim.release()  # also when told to stop: another run of the same output need not wait until it is stale

    def checkpoints(self, data_digest: str, model_revision: str) -> CheckpointStore:
        """Where saved states of this run go, given what it was fed."""
        origin = Origin(self.digest, data_digest, model_revision, installed_versions())
        return CheckpointStore(self._s3, self._prefix, origin, self._config.training.checkpoints.keep)

    def tidy(self) -> None:
        """Remove what an attempt that died after it had published left: saved states, its claim. A rest is harmless."""
        try:
            self._uploads.close()
            remove(self._s3, [self._prefix.below(ATTEMPTS_NAME)] if self._config.output.merged else [])
            clear(self._s3, self._prefix, run_id(), self.digest)
        except TrainerError as error:
            log.warning("publish: something is left behind: %s", error.message)
        self.clear_checkpoints()

    def clear_checkpoints(self) -> None:
        """Remove this run's saved states: its result is published. A rest is harmless."""
        try:
            self.checkpoints("", "").clear()
        except TrainerError as error:
            log.warning("publish: checkpoints are left behind: %s", error.message)

    def existing(self) -> Existing | None:
        """The result that is there, if it is of this config. Another run's, or one not understood: `OUTPUT_EXISTS`."""
        content = read(self._s3, self._prefix.below(MANIFEST_NAME))
        if content is None:
            return None
        try:
            manifest = AdapterManifest.model_validate_json(content)
        except ValidationError as error:
            raise self._taken("a manifest.json that this trainer did not write or cannot read") from error
        if manifest.config_digest != self.digest:
            raise self._taken(f"the result of another config, published {manifest.created_at}")
        if self._config.output.signing and read(self._s3, self._prefix.below(signing.SIGNATURE_NAME)) is None:
            raise self._taken(f"this config's result, published {manifest.created_at}, which is not signed")
        return Existing(manifest, content, self._merged_uri(manifest, content))

    def _merged_uri(self, manifest: AdapterManifest, content: bytes) -> str | None:
        if not self._config.output.merged:
            return None
        merged = self.merged(digest_of(content))
        return merged.uri if manifest.lists_merged_model or merged.is_whole() else None

    def merged(self, adapter_digest: str) -> MergedOutput:
        """The place of the merged model that belongs to the adapter whose manifest has this digest."""
        return MergedOutput(self._s3, self._prefix, self._uploads, adapter_digest, self._config.output.signing)

    def lacks_merged(self, existing: Existing) -> bool:
        """Whether the result is to have a merged model and has none."""
        return self._config.output.merged and existing.merged_uri is None

    def check_foreign(self) -> None:
        """Raise `OUTPUT_EXISTS` if publishing might replace files that no attempt of this config has uploaded."""
        folders = ["", MERGED] if self._config.output.merged else [""]
        names = [name for folder in folders for name in self._uploads.foreign(folder)]
        if names:
            message = (
                f"{self.uri} holds files that this run has not published ({_some(names)}); they are never overwritten"
            )
            raise TrainerError(Reason.OUTPUT_EXISTS, f"{message}: give output.uri another place or remove them")

    def fetch_adapter(self, existing: Existing, target: Path) -> Path:
        """Download the published adapter's own files."""
        return existing.fetch_adapter(self._s3, self._prefix, target)

    def check_inputs(self, existing: Existing, located: Located) -> None:
        """The result there must come from the inputs as they are now, else `INPUTS_CHANGED`."""
        if not located.matches(existing.manifest.model, existing.manifest.inputs):
            message = (
                f"{self.uri} holds this config's result of {existing.manifest.created_at}, but model or data have "
                "changed since; give output.uri a new place for a result of the new inputs"
            )
            raise TrainerError(Reason.INPUTS_CHANGED, message)

    def publish(self, folder: Path, manifest: AdapterManifest) -> Outcome:
        """Upload the export and then the manifest, which makes it a result; `manifest.files` is filled in here.

        The signature is of all these files, the manifest too, so it is in no list.
        """
        (folder / CONFIG_NAME).write_bytes(json.dumps(self._config.to_json(), indent=2).encode() + b"\n")
        paths = [(path, path.relative_to(folder).as_posix()) for path in _in_order(folder)]
        earlier = self._begin([FileRecord.of(path, name) for path, name in paths])
        if earlier:  # another attempt was faster: leave its files as its manifest says they are
            return earlier.outcome(self.uri)
        files = [self._uploads.put(path, name) for path, name in paths]
        made = Existing.made(manifest.model_copy(update={"files": files}))
        if self._config.output.signing:
            (folder / MANIFEST_NAME).write_bytes(made.content)
            signature = signing.sign(folder, self._config.output.signing)
            files = [*files, self._uploads.add(signature, signing.SIGNATURE_NAME)]
        self._uploads.verify(files)
        outcome = self._finish(made)
        self._uploads.close_quietly()
        total = sum(file.size for file in files)
        log.info("publish: %d files, %d bytes, at %s: %s", len(files), total, self.uri, outcome.reason)
        return outcome

    def _begin(self, files: list[FileRecord]) -> Existing | None:
        """Announce the files, unless a result is there, which is returned. Raises `OUTPUT_EXISTS` for foreign files."""
        earlier = self.existing()
        if earlier:
            return earlier
        try:
            self.check_foreign()
        except TrainerError:
            earlier = self.existing()  # published meanwhile, so these are its files
            if earlier:
                return earlier
            raise
        self._uploads.announce(files)
        return None

    def keep_report(self, folder: Path) -> str:
        """Store what was found of a model that is not published; returns the report's URI. No loader looks there."""
        place = f"{REJECTED}{self.digest.removeprefix('sha256:')[:12]}/"
        for path in sorted(folder.iterdir()):
            self._uploads.put(path, place + path.name)
        return f"{self.uri}/{place}{REPORT_NAME}"

    def _finish(self, made: Existing) -> Outcome:
        location = self._prefix.below(MANIFEST_NAME)
        self._uploads.check()
        for _ in range(_MANIFEST_ATTEMPTS):
            if put_if_absent(self._s3, location, made.content):
                return self._completed(made)
            earlier = self.existing()
            if earlier and earlier.content == made.content:  # ours: the answer to a first try was lost
                return self._completed(made)
            if earlier:
                return earlier.outcome(self.uri)
            # Refused, yet not there: the other of two writers at once was refused too (S3's 409). Try again.
        raise TrainerError(Reason.STORAGE_UNREACHABLE, f"{location}: the store refuses the manifest, but holds none")

    def _completed(self, made: Existing) -> Outcome:
        return Outcome(
            reason=Reason.COMPLETED,
            message=f"published at {self.uri}",
            backend=made.manifest.backend,
            dataset=made.manifest.dataset,
            result=made.manifest.result(self.uri, made.content),
        )

    def _taken(self, what: str) -> TrainerError:
        message = f"{self.uri} holds {what}; it is never overwritten: give output.uri another place or remove it"
        return TrainerError(Reason.OUTPUT_EXISTS, message)


def _some(names: Sequence[str]) -> str:
    """Up to three of them, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _digest(config: TrainerConfig) -> str:
    """Several workers make another result of the same config, since each adds a batch to every step."""
    workers = max(topology.size(), topology.asked().workers)
    if workers == 1:
        return config.digest()
    return "sha256:" + hashlib.sha256(f"{config.digest()} {workers} workers".encode()).hexdigest()


def _in_order(folder: Path) -> list[Path]:
    """Weights first; `adapter_config.json`, which loaders look for, after all that it needs."""

    def rank(path: Path) -> tuple[int, str]:
        last = path.name == "adapter_config.json"
        return (0 if path.suffix == ".safetensors" else 2 if last else 1, path.as_posix())

    return sorted((path for path in folder.rglob("*") if path.is_file()), key=rank)
