"""Checkpoints in S3: one folder per step, `<output>/.checkpoints/<config digest>/step-<N>/`.

The manifest of a checkpoint lists all its files with their digests and is written last. A folder without a manifest, or
with files that do not match it, is not a checkpoint.
"""

from __future__ import annotations

import logging
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, StringConstraints, ValidationError

from finetune_trainer.checkpoints.layout import (
    ALLOWED_FILES,
    CHECKPOINT_FORMAT_VERSION,
    CHECKPOINT_MANIFEST_NAME,
    CHECKPOINTS_PREFIX,
)
from finetune_trainer.contract import Model, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.recipe import FIRST_RECIPE, RECIPE
from finetune_trainer.records.manifest import FileRecord
from finetune_trainer.storage import (
    OUTPUT_ERRORS,
    S3,
    InputFile,
    Location,
    S3Object,
    delete_objects,
    download_objects,
    list_objects,
    put_bytes,
    put_file,
    read_object,
)
from finetune_trainer.telemetry.progress import current_timestamp
from finetune_trainer.telemetry.run_log import LOG_NAME

log = logging.getLogger(__name__)

_STEP_FILE = re.compile(r"step-(\d+)/(.+)")


@dataclass(frozen=True)
class CheckpointProvenance:
    """The origin of a checkpoint. A run resumes only from checkpoints of its own origin."""

    config_digest: str
    data_digest: str
    model_revision: str
    versions: dict[str, str]
    template_date: date | None = None
    """Date that the chat template wrote as the current one in the rows, or None if it writes none."""


def _validate_timestamp(timestamp: str) -> str:
    """Raise `ValueError` for an invalid timestamp: it is reported as progress, and others can write to the bucket."""
    datetime.fromisoformat(timestamp)
    return timestamp


class CheckpointManifest(Model):
    """The manifest of a checkpoint, `checkpoint.json`."""

    model_config = ConfigDict(extra="ignore")

    format_version: int
    recipe: int = FIRST_RECIPE
    step: int
    created_at: Annotated[str, StringConstraints(max_length=64), AfterValidator(_validate_timestamp)]
    config_digest: str
    data_digest: str
    model_revision: str
    versions: dict[str, str]
    template_date: date | None = None
    files: list[FileRecord]

    def to_bytes(self) -> bytes:
        """Serialize the manifest as it is stored."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode()


@dataclass(frozen=True)
class RestoredCheckpoint:
    """A verified checkpoint on disk."""

    folder: Path
    step: int
    created_at: str


class CheckpointStore:
    """The newest `keep_count` checkpoints of one run."""

    def __init__(self, s3: S3, output: Location, provenance: CheckpointProvenance, keep_count: int) -> None:
        self._s3 = s3
        self._root = output.child(CHECKPOINTS_PREFIX)
        self._run_root = self._root.child(provenance.config_digest.removeprefix("sha256:") + "/")
        self._provenance = provenance
        self._keep_count = keep_count

    def save(self, folder: Path, step: int, check_lock: Callable[[], None]) -> None:
        """Upload the files of a checkpoint, then its manifest; then remove older checkpoints.

        `check_lock` raises if this attempt lost the output lock.
        """
        check_lock()
        prefix = self._run_root.child(f"step-{step}/")
        # The manifest of an earlier attempt, whose files are replaced now.
        delete_objects(self._s3, [prefix.child(CHECKPOINT_MANIFEST_NAME)])
        files = [self._upload(prefix, folder, path) for path in sorted(list_files(folder))]
        manifest = CheckpointManifest(
            format_version=CHECKPOINT_FORMAT_VERSION,
            recipe=RECIPE,
            step=step,
            created_at=current_timestamp(),
            files=files,
            **vars(self._provenance),
        )
        check_lock()
        put_bytes(self._s3, prefix.child(CHECKPOINT_MANIFEST_NAME), manifest.to_bytes())
        self._prune(step)

    def _upload(self, prefix: Location, folder: Path, path: Path) -> FileRecord:
        name = path.relative_to(folder).as_posix()
        digest = put_file(self._s3, prefix.child(name), path)
        return FileRecord(path=name, size=path.stat().st_size, sha256=digest)

    def _prune(self, newest_step: int) -> None:
        """Keep the newest checkpoints. Those of later steps are from an attempt that did not resume from this one."""
        steps = self._list_steps()
        complete_steps = [
            step
            for step in sorted(steps, reverse=True)
            if step <= newest_step and CHECKPOINT_MANIFEST_NAME in steps[step]
        ]
        for step in steps.keys() - set(complete_steps[: self._keep_count]):
            self._delete_checkpoint(steps[step])

    def build_log_uri(self, step: int) -> str:
        """Return the URI of the log in the checkpoint of a step."""
        return str(self._run_root.child(f"step-{step}/{LOG_NAME}"))

    def clear(self) -> None:
        """Remove all checkpoints of this run."""
        for objects in self._list_steps().values():
            self._delete_checkpoint(objects)

    def _delete_checkpoint(self, objects: dict[str, S3Object]) -> None:
        # The manifest first, so that a partly removed checkpoint does not count as complete.
        names = sorted(objects, key=lambda name: name != CHECKPOINT_MANIFEST_NAME)
        delete_objects(self._s3, [objects[name].location for name in names])

    def _list_steps(self) -> dict[int, dict[str, S3Object]]:
        steps: dict[int, dict[str, S3Object]] = {}
        for stored_object in list_objects(self._s3, self._run_root):
            key_match = _STEP_FILE.fullmatch(stored_object.name)
            if key_match:
                steps.setdefault(int(key_match[1]), {})[key_match[2]] = replace(stored_object, name=key_match[2])
        return steps

    def fetch_newest(self, target: Path) -> RestoredCheckpoint | None:
        """Download the newest complete checkpoint of this run. Logs why newer ones are skipped."""
        self._log_other_configs()
        steps = self._list_steps()
        for step in sorted(steps, reverse=True):
            folder = target / f"checkpoint-{step}"  # the name that transformers expects
            manifest_or_problem = self._fetch_verified(steps[step], folder)
            if isinstance(manifest_or_problem, CheckpointManifest):
                log.info("checkpoint: resuming from step %d", step)
                return RestoredCheckpoint(folder, step, manifest_or_problem.created_at)
            shutil.rmtree(folder, ignore_errors=True)
            log.warning("checkpoint: skipping step %d: %s", step, manifest_or_problem)
        if steps:
            log.warning("checkpoint: training starts from the beginning, since no checkpoint is usable")
        return None

    def find_template_date(self) -> date | None:
        """Return the date that the newest complete checkpoint records for chat templates, or None."""
        steps = self._list_steps()
        for step in sorted(steps, reverse=True):
            manifest = self._read_manifest(steps[step])
            if isinstance(manifest, CheckpointManifest):
                return manifest.template_date
        return None

    def fetch(self, step: int, target: Path) -> None:
        """Download the checkpoint of this step, which rank 0 chose. Raises `STORAGE_CORRUPT` if it is unusable."""
        manifest_or_problem = self._fetch_verified(self._list_steps().get(step, {}), target / f"checkpoint-{step}")
        if not isinstance(manifest_or_problem, CheckpointManifest):
            raise TrainerError(
                Reason.STORAGE_CORRUPT, f"the checkpoint of step {step} is unusable: {manifest_or_problem}"
            )

    def _log_other_configs(self) -> None:
        names = {
            stored_object.location.key.removeprefix(self._root.key)
            for stored_object in list_objects(self._s3, self._root)
        }
        own_name = self._run_root.key.removeprefix(self._root.key)
        other_digests = sorted({name.partition("/")[0] for name in names if not name.startswith(own_name)})
        if other_digests:
            shortened = ", ".join(digest[:12] for digest in other_digests[:5])
            log.info("checkpoint: ignoring checkpoints of %d other configurations: %s", len(other_digests), shortened)

    def _fetch_verified(self, objects: dict[str, S3Object], folder: Path) -> CheckpointManifest | str:
        """Download and verify a checkpoint. Returns its manifest, or why it is unusable."""
        manifest = self._read_manifest(objects)
        if not isinstance(manifest, CheckpointManifest):
            return manifest
        problem = self._find_mismatch(manifest) or _find_incomplete(manifest, objects)
        return problem or self._download_files(manifest, objects, folder) or manifest

    def _read_manifest(self, objects: dict[str, S3Object]) -> CheckpointManifest | str:
        """Return the manifest of a checkpoint, or why it has none."""
        if CHECKPOINT_MANIFEST_NAME not in objects:
            return "it is incomplete"
        content = read_object(self._s3, objects[CHECKPOINT_MANIFEST_NAME].location)
        try:
            return CheckpointManifest.model_validate_json(content or b"")
        except ValidationError:
            return f"its {CHECKPOINT_MANIFEST_NAME} is invalid"

    def _find_mismatch(self, manifest: CheckpointManifest) -> str | None:
        if manifest.format_version != CHECKPOINT_FORMAT_VERSION:
            return f"it has format version {manifest.format_version}, this trainer uses {CHECKPOINT_FORMAT_VERSION}"
        if manifest.recipe != RECIPE:
            return f"it was trained with recipe {manifest.recipe}, this trainer uses recipe {RECIPE}"
        if manifest.data_digest != self._provenance.data_digest:
            return "the data has changed since"
        if manifest.model_revision != self._provenance.model_revision:
            return "the base model has changed since"
        if manifest.template_date != self._provenance.template_date:
            return (
                f"its rows have the date {manifest.template_date}, those of this run {self._provenance.template_date}"
            )
        return None

    def _download_files(self, manifest: CheckpointManifest, objects: dict[str, S3Object], folder: Path) -> str | None:
        objects_to_download = [objects[file.path] for file in manifest.files]
        try:
            files = download_objects(self._s3, objects_to_download, folder, OUTPUT_ERRORS, lambda _: None)
        except TrainerError as error:
            if error.reason not in (Reason.STORAGE_CORRUPT, Reason.OUTPUT_NOT_FOUND):
                raise
            return error.message
        problem = _find_damaged(manifest, files) or _find_unsafe(folder)
        if problem is None:
            self._warn_changed_versions(manifest)
        return problem

    def _warn_changed_versions(self, manifest: CheckpointManifest) -> None:
        for name, version in self._provenance.versions.items():
            saved_version = manifest.versions.get(name, "none")
            if saved_version != version:
                log.warning(
                    "checkpoint: saved with %s %s, resumed with %s; losses may differ", name, saved_version, version
                )


def list_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a saved state that are stored."""
    return (path for path in folder.rglob("*") if ALLOWED_FILES.fullmatch(path.name) and path.is_file())


def _find_incomplete(manifest: CheckpointManifest, objects: dict[str, S3Object]) -> str | None:
    for file in manifest.files:
        if not ALLOWED_FILES.fullmatch(file.path.rpartition("/")[2]):
            return f"it lists {file.path}, which is not a file of a checkpoint"
        if file.path not in objects:
            return f"{file.path} is missing"
        if objects[file.path].size != file.size:
            return f"{file.path} has {objects[file.path].size} bytes instead of {file.size}"
    return None if manifest.files else "it lists no files"


def _find_damaged(manifest: CheckpointManifest, files: list[InputFile]) -> str | None:
    for record, file in zip(manifest.files, files, strict=True):
        if record.sha256 != file.sha256:
            return f"{record.path} is damaged"
    return None


def _find_unsafe(folder: Path) -> str | None:
    """Return why a file is not safe to load: a pickle can run code, and others can write to the bucket."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    for path in [*folder.rglob("*.pt"), *folder.rglob("*.pth")]:
        try:
            with safe_globals():
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError):
            return f"{path.name} contains more than tensors and numbers, or is not a file of a checkpoint"
    return None
