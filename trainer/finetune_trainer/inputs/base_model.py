"""Sources of base models: S3, the Hugging Face hub and volumes. Each is resolved first and downloaded later."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from finetune_trainer.contract import CLAIMS_DIR_ENV, ModelSource, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.manifest import InputRecord, ModelRecord
from finetune_trainer.storage import MODEL_ERRORS, S3, InputFile, Location, S3Object, download_objects, find_objects

if TYPE_CHECKING:
    from finetune_trainer.inputs.hub import HubSnapshot

CONFIG_NAME = "config.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME)
"""Files of an adapter that are downloaded: no pickle files, no code, no records of an earlier run."""
# Copies of the weights for other programs, folders with such copies, and code, which is never run. All other files are
# downloaded and checked: `model_files.check_model_dir` rejects a model in pickle files.
_IGNORED_SUFFIXES = {
    ".gguf",
    ".onnx",
    ".msgpack",
    ".h5",
    ".ot",
    ".tflite",
    ".mlmodel",
    ".md",
    ".png",
    ".jpg",
    ".gitattributes",
    ".py",
}
_IGNORED_FOLDERS = {"original", "onnx", "openvino", "coreml"}


@dataclass(frozen=True)
class FetchedModel:
    """A base model on disk."""

    folder: Path
    revision: str
    """Commit of the hub, or `sha256:…` over names and digests of all files."""
    files: list[InputFile]
    """Files from S3. Empty for other sources, whose revision identifies them."""


class BaseModelSource(Protocol):
    """A base model that is resolved but not downloaded."""

    @property
    def size(self) -> int:
        """Bytes that `fetch` will write."""

    def matches(self, record: ModelRecord) -> bool:
        """Return whether an earlier run used the same model."""

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Provide the model on disk. Calls `on_bytes` with the number of bytes of each chunk."""

    def read_config(self) -> bytes:
        """Return the content of config.json without the download of the model. Raises `OSError` if there is none."""


def resolve_model(source: ModelSource, s3: S3) -> BaseModelSource:
    """Find the model. Raises for problems of its location, before anything is downloaded."""
    if source.uri.startswith("s3://"):
        location = Location.parse_folder(source.uri)
        return S3ModelSource(
            s3, [entry for entry in find_objects(s3, location, MODEL_ERRORS) if is_model_file(entry.name)]
        )
    if source.uri.startswith("hf://"):
        from finetune_trainer.inputs import hub  # its client is imported only if it is used

        return HubModelSource(hub.resolve_snapshot(source.uri, source.revision))
    return VolumeModelSource(_resolve_claim_folder(source.uri))


def resolve_adapter(source: ModelSource, s3: S3) -> S3ModelSource | None:
    """Find the adapter that training starts from, if `model.adapterURI` is set."""
    if source.adapter_uri is None:
        return None
    entries = find_objects(s3, Location.parse_folder(source.adapter_uri), MODEL_ERRORS)
    needed = [entry for entry in entries if entry.name in ADAPTER_FILES]
    missing = [name for name in ADAPTER_FILES if name not in [entry.name for entry in needed]]
    if missing:
        message = f"{source.adapter_uri} has no {missing[0]}; model.adapterURI must be the prefix of a LoRA adapter"
        raise TrainerError(Reason.MODEL_NOT_FOUND, message)
    return S3ModelSource(s3, needed)


def read_model_settings(source: BaseModelSource) -> Mapping[str, Any]:
    """Return config.json before the model is downloaded, or nothing if it is invalid: the run reports that when it
    loads the model. Raises for problems of the location."""
    with suppress(OSError, ValueError):
        settings = json.loads(source.read_config())
        return settings if isinstance(settings, dict) else {}
    return {}


def _read_fetched_config(source: BaseModelSource) -> bytes:
    with TemporaryDirectory(prefix="config-") as folder:
        return (source.fetch(Path(folder), lambda _: None).folder / CONFIG_NAME).read_bytes()


def is_model_file(name: str) -> bool:
    """Return whether a file in the folder of a model is part of the model."""
    path = Path(name)
    if path.suffix.lower() in _IGNORED_SUFFIXES or path.name.startswith((".", "consolidated")):
        return False
    return not _IGNORED_FOLDERS.intersection(path.parts[:-1])


@dataclass(frozen=True)
class S3ModelSource:
    """A model below an S3 prefix."""

    s3: S3
    objects: Sequence[S3Object]

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(entry.size for entry in self.objects)

    def matches(self, record: ModelRecord) -> bool:
        """Compare keys, sizes and ETags."""
        return [InputRecord.from_listing(entry) for entry in self.objects] == [
            file.without_sha256() for file in record.files
        ]

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download all objects."""
        files = download_objects(self.s3, self.objects, target, MODEL_ERRORS, on_bytes)
        names = [entry.name for entry in self.objects]
        revision = _compute_digest(zip(names, (file.sha256 for file in files), strict=True))
        return FetchedModel(target, revision, files)

    def read_config(self) -> bytes:
        """Download config.json alone."""
        config_objects = [entry for entry in self.objects if entry.name == CONFIG_NAME]
        return _read_fetched_config(replace(self, objects=config_objects))


@dataclass(frozen=True)
class HubModelSource:
    """A model on the hub, at one commit."""

    snapshot: HubSnapshot

    @property
    def size(self) -> int:
        """Bytes of all files of the model."""
        return sum(self.snapshot.sizes.values())

    def matches(self, record: ModelRecord) -> bool:
        """Compare the commit."""
        return record.revision == self.snapshot.commit

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download the files of the commit."""
        from finetune_trainer.inputs import hub

        hub.download_snapshot(self.snapshot, target)
        on_bytes(self.size)
        return FetchedModel(target, self.snapshot.commit, [])

    def read_config(self) -> bytes:
        """Download config.json alone."""
        sizes = {name: size for name, size in self.snapshot.sizes.items() if name == CONFIG_NAME}
        return _read_fetched_config(HubModelSource(replace(self.snapshot, sizes=sizes)))


@dataclass(frozen=True)
class VolumeModelSource:
    """A model on a mounted volume, which is read in place."""

    folder: Path

    @property
    def size(self) -> int:
        """Zero: nothing is copied."""
        return 0

    def matches(self, record: ModelRecord) -> bool:
        """Compare the content, which is read completely since a volume has no ETags."""
        return record.revision == self._compute_revision()

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Hash the files in place."""
        return FetchedModel(self.folder, self._compute_revision(), [])

    def read_config(self) -> bytes:
        """Read config.json in place."""
        return (self.folder / CONFIG_NAME).read_bytes()

    def _compute_revision(self) -> str:
        return _compute_digest((name, _hash_file(self.folder / name)) for name in _list_files(self.folder))


def _resolve_claim_folder(uri: str) -> Path:
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    root = os.environ.get(CLAIMS_DIR_ENV)
    if not root:
        message = (
            f"{uri}: {CLAIMS_DIR_ENV} is not set; outside of a cluster, set it to a folder that contains {claim}/{path}"
        )
        raise TrainerError(Reason.MODEL_NOT_FOUND, message)
    volume = (Path(root) / claim).resolve()
    folder = (volume / path).resolve()
    if not folder.is_relative_to(volume):
        raise TrainerError(Reason.MODEL_INVALID, f"{uri}: the path is outside of the volume")
    escaping_link = next(
        (name for name in _list_links(folder) if not (folder / name).resolve().is_relative_to(volume)), None
    )
    if escaping_link:
        raise TrainerError(
            Reason.MODEL_INVALID, f"{uri}: {escaping_link!r} is a link to a target outside of the volume"
        )
    if not folder.is_dir() or not any(_list_files(folder)):
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{uri}: no model files at {folder}; check the content of the claim")
    return folder


def _list_links(folder: Path) -> Iterator[str]:
    """Return links to files and folders: a library may read files in linked folders, `_list_files` does not."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink())
    return (name for name in names if is_model_file(name) and is_model_file(f"{name}/x"))  # it may be a folder


def _list_files(folder: Path) -> Iterator[str]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return (name for name in names if is_model_file(name))


def _compute_digest(names_and_digests: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(names_and_digests))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
