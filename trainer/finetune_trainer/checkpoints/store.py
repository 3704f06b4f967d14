"""Checkpoints below the output: a folder of files per step, and a marker, written last, that vouches for each of them.

`<output>/.checkpoints/<config digest>/step-<N>/`. What has no marker, or does not match it, was never there.
"""

from __future__ import annotations

import logging
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, StringConstraints, ValidationError

from finetune_trainer.contract import Model, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.recipe import FIRST_RECIPE, RECIPE
from finetune_trainer.records.manifest import FileRecord
from finetune_trainer.storage import (
    OUTPUT,
    S3,
    InputFile,
    Location,
    S3Object,
    download,
    listed,
    put_bytes,
    put_file,
    read,
    remove,
)
from finetune_trainer.telemetry.progress import now
from finetune_trainer.telemetry.run_log import LOG_NAME

log = logging.getLogger(__name__)

CHECKPOINTS = ".checkpoints/"
MARKER = "checkpoint.json"
FORMAT = 1
COUNTS_NAME = "counts.json"
"""What was trained before it, and what was seen of the validation data."""
FOLD_LOSSES = "foldLosses"
"""In that file: of the folds of a cross-validation that were done before it."""
BEST_NAME = "best.safetensors"
"""The adapter of the lowest validation loss so far, where the run publishes that one."""
_FILES = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors|(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth"
    rf"|trainer_state\.json|{COUNTS_NAME}|{BEST_NAME}|{LOG_NAME}"
)
"""All that a checkpoint may hold; transformers also writes the tokenizer and a pickle of its arguments."""
_STEP = re.compile(r"step-(\d+)/(.+)")


@dataclass(frozen=True)
class Origin:
    """What a checkpoint must come from to be of use."""

    config_digest: str
    data_digest: str
    model_revision: str
    versions: dict[str, str]


def _readable(time: str) -> str:
    """It is reported as the run's progress, and whoever may write to the bucket wrote it. Raises `ValueError`."""
    datetime.fromisoformat(time)
    return time


class Marker(Model):
    """`checkpoint.json`."""

    model_config = ConfigDict(extra="ignore")

    format_version: int
    recipe: int = FIRST_RECIPE
    step: int
    created_at: Annotated[str, StringConstraints(max_length=64), AfterValidator(_readable)]
    config_digest: str
    data_digest: str
    model_revision: str
    versions: dict[str, str]
    files: list[FileRecord]

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return self.model_dump_json(by_alias=True, indent=2).encode()


@dataclass(frozen=True)
class Restored:
    """A checkpoint on disk, verified."""

    folder: Path
    step: int
    created_at: str


class CheckpointStore:
    """The checkpoints of one run, newest `keep` of them."""

    def __init__(self, s3: S3, output: Location, origin: Origin, keep: int) -> None:
        self._s3 = s3
        self._all = output.below(CHECKPOINTS)
        self._own = self._all.below(origin.config_digest.removeprefix("sha256:") + "/")
        self._origin = origin
        self._keep = keep

    def save(self, folder: Path, step: int, check: Callable[[], None]) -> None:
        """Upload a saved state, then its marker; older ones go only now. `check` says whether we may still write."""
        check()
        prefix = self._own.below(f"step-{step}/")
        remove(self._s3, [prefix.below(MARKER)])  # of an earlier attempt, whose files are about to be replaced
        files = [self._upload(prefix, folder, path) for path in sorted(files_of(folder))]
        marker = Marker(
            format_version=FORMAT, recipe=RECIPE, step=step, created_at=now(), files=files, **vars(self._origin)
        )
        check()
        put_bytes(self._s3, prefix.below(MARKER), marker.to_bytes())
        self._prune(step)

    def _upload(self, prefix: Location, folder: Path, path: Path) -> FileRecord:
        name = path.relative_to(folder).as_posix()
        digest = put_file(self._s3, prefix.below(name), path)
        return FileRecord(path=name, size=path.stat().st_size, sha256=digest)

    def _prune(self, newest: int) -> None:
        """Keep the newest; later steps are of an attempt that came to nothing."""
        steps = self._steps()
        whole = [step for step in sorted(steps, reverse=True) if step <= newest and MARKER in steps[step]]
        for step in steps.keys() - set(whole[: self._keep]):
            self._remove(steps[step])

    def clear(self) -> None:
        """Remove this run's checkpoints: its result is published."""
        for objects in self._steps().values():
            self._remove(objects)

    def _remove(self, objects: dict[str, S3Object]) -> None:
        # The marker first, so that nothing half removed looks whole.
        names = sorted(objects, key=lambda name: name != MARKER)
        remove(self._s3, [objects[name].location for name in names])

    def _steps(self) -> dict[int, dict[str, S3Object]]:
        steps: dict[int, dict[str, S3Object]] = {}
        for each in listed(self._s3, self._own):
            found = _STEP.fullmatch(each.name)
            if found:
                steps.setdefault(int(found[1]), {})[found[2]] = replace(each, name=found[2])
        return steps

    def newest(self, target: Path) -> Restored | None:
        """Fetch the newest that is whole and of this very run; the log says why others are not used."""
        self._mention_others()
        steps = self._steps()
        for step in sorted(steps, reverse=True):
            folder = target / f"checkpoint-{step}"  # the name that transformers expects
            fetched = self._fetch(steps[step], folder)
            if isinstance(fetched, Marker):
                log.info("checkpoint: going on from step %d", step)
                return Restored(folder, step, fetched.created_at)
            shutil.rmtree(folder, ignore_errors=True)
            log.warning("checkpoint: the one of step %d is not used: %s", step, fetched)
        if steps:
            log.warning("checkpoint: training starts afresh, since none of those found can be used")
        return None

    def fetch(self, step: int, target: Path) -> None:
        """The one of this step, which another worker goes on from. Raises `STORAGE_CORRUPT` if it cannot be used."""
        fetched = self._fetch(self._steps().get(step, {}), target / f"checkpoint-{step}")
        if not isinstance(fetched, Marker):
            raise TrainerError(Reason.STORAGE_CORRUPT, f"the checkpoint of step {step} cannot be used: {fetched}")

    def _mention_others(self) -> None:
        names = {each.location.key.removeprefix(self._all.key) for each in listed(self._s3, self._all)}
        own = self._own.key.removeprefix(self._all.key)
        others = sorted({name.partition("/")[0] for name in names if not name.startswith(own)})
        if others:
            shown = ", ".join(each[:12] for each in others[:5])
            log.info("checkpoint: %d other configs have some here, which are left alone: %s", len(others), shown)

    def _fetch(self, objects: dict[str, S3Object], folder: Path) -> Marker | str:
        """Download one, verified. Returns its marker, or why it cannot be used."""
        if MARKER not in objects:
            return "it is incomplete"
        content = read(self._s3, objects[MARKER].location)
        try:
            marker = Marker.model_validate_json(content or b"")
        except ValidationError:
            return f"its {MARKER} cannot be read"
        problem = self._unfit(marker) or _incomplete(marker, objects)
        return problem or self._download(marker, objects, folder) or marker

    def _unfit(self, marker: Marker) -> str | None:
        if marker.format_version != FORMAT:
            return f"it has format {marker.format_version}, this trainer knows {FORMAT}"
        if marker.recipe != RECIPE:
            return f"it was trained by recipe {marker.recipe}, this trainer uses recipe {RECIPE}"
        if marker.data_digest != self._origin.data_digest:
            return "the data has changed since"
        if marker.model_revision != self._origin.model_revision:
            return "the base model has changed since"
        return None

    def _download(self, marker: Marker, objects: dict[str, S3Object], folder: Path) -> str | None:
        wanted = [objects[file.path] for file in marker.files]
        try:
            files = download(self._s3, wanted, folder, OUTPUT, lambda _: None)
        except TrainerError as error:
            if error.reason not in (Reason.STORAGE_CORRUPT, Reason.OUTPUT_NOT_FOUND):
                raise
            return error.message
        problem = _damaged(marker, files) or _unsafe(folder)
        if problem is None:
            self._compare_versions(marker)
        return problem

    def _compare_versions(self, marker: Marker) -> None:
        for name, version in self._origin.versions.items():
            before = marker.versions.get(name, "none")
            if before != version:
                log.warning("checkpoint: it was made with %s %s, this is %s; losses may differ", name, before, version)


def files_of(folder: Path) -> Iterator[Path]:
    """What is stored of a state that transformers has saved."""
    return (path for path in folder.rglob("*") if _FILES.fullmatch(path.name) and path.is_file())


def _incomplete(marker: Marker, objects: dict[str, S3Object]) -> str | None:
    for file in marker.files:
        if not _FILES.fullmatch(file.path.rpartition("/")[2]):
            return f"it names {file.path}, which no checkpoint has"
        if file.path not in objects:
            return f"{file.path} is missing"
        if objects[file.path].size != file.size:
            return f"{file.path} has {objects[file.path].size} bytes instead of {file.size}"
    return None if marker.files else "it names no files"


def _damaged(marker: Marker, files: list[InputFile]) -> str | None:
    for record, file in zip(marker.files, files, strict=True):
        if record.sha256 != file.sha256:
            return f"{record.path} is damaged"
    return None


def _unsafe(folder: Path) -> str | None:
    """Whoever may write to the bucket may write a pickle that runs code; only numbers and names are taken."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    for path in [*folder.rglob("*.pt"), *folder.rglob("*.pth")]:
        try:
            with safe_globals():
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError):
            return f"{path.name} holds more than numbers, or is no checkpoint's file"
    return None
