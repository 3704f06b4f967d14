"""Sources of base models: S3, the Hugging Face hub and volumes.

Each is resolved first. Its settings are downloaded next, which is enough to check the model and to prepare the data.
Its weights are downloaded meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from finetune_trainer.contract import CLAIMS_DIR_ENV, CacheResult, ModelSource, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.manifest import InputRecord, ModelRecord
from finetune_trainer.storage import MODEL_ERRORS, S3, InputFile, Location, S3Object, download_objects, find_objects
from finetune_trainer.storage.download import resolve_local_paths
from finetune_trainer.storage.local_files import hash_file

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
_WEIGHTS_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl"}


@dataclass(frozen=True)
class FetchedModel:
    """A base model or an adapter on disk."""

    folder: Path
    revision: str
    """Commit of the hub, or `sha256:…` over names and digests of all files. Empty until the weights are there."""
    files: list[InputFile]
    """Files from S3. Empty for other sources, whose revision identifies them."""
    license_fields: Mapping[str, str] = field(default_factory=dict)
    """License of the card of a model on the hub; see `HubSnapshot`."""
    cache_result: CacheResult | None = None
    """Where the model came from, if the run has a model cache."""


@dataclass(frozen=True)
class ListedFile:
    """A file of a model, as its source lists it without a download."""

    size: int
    """Size in bytes."""
    sha256: str = ""
    """SHA-256 digest of the content in hexadecimal, if the source gives it."""
    blob_id: str = ""
    """ID of the content in Git (SHA-1) in hexadecimal, if the source gives it."""


class BaseModelSource(Protocol):
    """A base model that is resolved but not downloaded."""

    @property
    def size(self) -> int:
        """Bytes to download."""

    @property
    def settings_size(self) -> int:
        """Bytes to download without the weights."""

    def matches(self, record: ModelRecord) -> bool:
        """Return whether an earlier run used the same model."""

    def fetch_settings(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Provide all files but the weights, in whose place are sparse files of their size. No byte of the weights is
        requested. Calls `on_bytes` with the number of bytes of each chunk."""

    def fetch_weights(self, settings: FetchedModel, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Complete the model of `fetch_settings` with its weights."""

    def read_config(self) -> bytes:
        """Return the content of config.json without the download of the model. Raises `OSError` if there is none."""


class CacheableModelSource(BaseModelSource, Protocol):
    """A base model that a cache can hold, because its source identifies the content of each file."""

    @property
    def identity(self) -> list[str]:
        """Location and version of the files. It differs between two models, and between two versions of a model."""

    @property
    def listed_files(self) -> Mapping[str, ListedFile]:
        """The files of the model, by name."""

    def describe_copy(self, folder: Path, sha256_by_name: Mapping[str, str]) -> FetchedModel:
        """Return what `fetch_weights` returns, for a folder that already has all files with these digests."""


def resolve_model(source: ModelSource, s3: S3) -> S3ModelSource | HubModelSource | VolumeModelSource:
    """Find the model. Raises for problems of its location, before anything is downloaded."""
    if source.uri.startswith("s3://"):
        location = Location.parse_folder(source.uri)
        return S3ModelSource(
            s3, [entry for entry in find_objects(s3, location, MODEL_ERRORS) if is_model_file(entry.name)]
        )
    if source.uri.startswith("hf://"):
        from finetune_trainer.inputs import hub  # its client is imported only if it is used

        return HubModelSource(hub.resolve_snapshot(source.uri, source.revision))
    if source.uri.startswith("file://"):
        return VolumeModelSource(_check_model_folder(source.uri, Path(source.uri.removeprefix("file://"))))
    return VolumeModelSource(_resolve_claim_folder(source.uri))


def resolve_adapter(uri: str, field: str, s3: S3) -> S3ModelSource:
    """Find the adapter below an S3 prefix. `field` is the field of the config that has the URI."""
    try:
        entries = find_objects(s3, Location.parse_folder(uri), MODEL_ERRORS)
    except TrainerError as error:
        raise TrainerError(error.reason, f"{field}: {error.message}") from error
    needed = [entry for entry in entries if entry.name in ADAPTER_FILES]
    missing = [name for name in ADAPTER_FILES if name not in [entry.name for entry in needed]]
    if missing:
        message = f"{uri} has no {missing[0]}; {field} must be the prefix of a LoRA adapter"
        raise TrainerError(Reason.MODEL_NOT_FOUND, message)
    return S3ModelSource(s3, needed)


def fetch_model(source: BaseModelSource, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
    """Provide the complete model on disk."""
    return source.fetch_weights(source.fetch_settings(target, on_bytes), on_bytes)


def read_model_settings(source: BaseModelSource) -> Mapping[str, Any]:
    """Return config.json before the model is downloaded, or nothing if it is invalid: the run reports that when it
    loads the model. Raises for problems of the location."""
    with suppress(OSError, ValueError):
        settings = json.loads(source.read_config())
        return settings if isinstance(settings, dict) else {}
    return {}


def _read_fetched_config(source: BaseModelSource) -> bytes:
    with TemporaryDirectory(prefix="config-") as folder:
        return (source.fetch_settings(Path(folder), lambda _: None).folder / CONFIG_NAME).read_bytes()


def is_model_file(name: str) -> bool:
    """Return whether a file in the folder of a model is part of the model."""
    path = Path(name)
    if path.suffix.lower() in _IGNORED_SUFFIXES or path.name.startswith((".", "consolidated")):
        return False
    return not _IGNORED_FOLDERS.intersection(path.parts[:-1])


def is_weights_file(name: str) -> bool:
    """Return whether a file of a model contains weights. Pickle files are among them: they are refused unread."""
    return Path(name).suffix.lower() in _WEIGHTS_SUFFIXES


def _write_sparse_file(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


@dataclass(frozen=True)
class S3ModelSource:
    """A model, or an adapter, below an S3 prefix."""

    s3: S3
    objects: Sequence[S3Object]

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(entry.size for entry in self.objects)

    @property
    def settings_size(self) -> int:
        """Bytes of all objects but the weights."""
        return sum(entry.size for entry in self.objects if not is_weights_file(entry.name))

    @property
    def weights(self) -> list[S3Object]:
        """The objects that contain weights."""
        return [entry for entry in self.objects if is_weights_file(entry.name)]

    def matches(self, record: ModelRecord) -> bool:
        """Compare keys, sizes and ETags."""
        return [InputRecord.from_listing(entry) for entry in self.objects] == [
            file.without_sha256() for file in record.files
        ]

    def fetch_settings(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download all objects but the weights."""
        paths = resolve_local_paths(self.objects, target, MODEL_ERRORS)
        settings = [entry for entry in self.objects if not is_weights_file(entry.name)]
        files = download_objects(self.s3, settings, target, MODEL_ERRORS, on_bytes)
        for entry, path in zip(self.objects, paths, strict=True):
            if is_weights_file(entry.name):
                _write_sparse_file(path, entry.size)
        return FetchedModel(target, "", files)

    def fetch_weights(self, settings: FetchedModel, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download the weights, which replace the sparse files."""
        weights = download_objects(self.s3, self.weights, settings.folder, MODEL_ERRORS, on_bytes)
        digests = {file.uri: file.sha256 for file in (*settings.files, *weights)}
        return self.describe_copy(settings.folder, {entry.name: digests[entry.uri] for entry in self.objects})

    @property
    def identity(self) -> list[str]:
        """Endpoint, and key, size and ETag of each object."""
        endpoints = {self.s3.bucket(entry.location.bucket).endpoint for entry in self.objects}
        return ["s3", *sorted(endpoints), *(f"{entry.uri} {entry.size} {entry.etag}" for entry in self.objects)]

    @property
    def listed_files(self) -> Mapping[str, ListedFile]:
        """The objects. An ETag identifies the content in the store, but it is not always a digest of it."""
        return {entry.name: ListedFile(entry.size) for entry in self.objects}

    def describe_copy(self, folder: Path, sha256_by_name: Mapping[str, str]) -> FetchedModel:
        """Return the files as downloaded from S3."""
        files = [
            InputFile(entry.uri, folder / entry.name, entry.size, entry.etag, sha256_by_name[entry.name])
            for entry in self.objects
        ]
        return FetchedModel(folder, _compute_digest(sha256_by_name.items()), files)

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

    @property
    def settings_size(self) -> int:
        """Bytes of all files but the weights."""
        return sum(size for name, size in self.snapshot.sizes.items() if not is_weights_file(name))

    def matches(self, record: ModelRecord) -> bool:
        """Compare the commit."""
        return record.revision == self.snapshot.commit

    def fetch_settings(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download the files of the commit but the weights."""
        self._download(target, weights=False)
        on_bytes(self.settings_size)
        for name in filter(is_weights_file, self.snapshot.sizes):
            _write_sparse_file(target / name, self.snapshot.sizes[name])
        return FetchedModel(target, "", [])

    def fetch_weights(self, settings: FetchedModel, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download the weights of the commit."""
        for name in filter(is_weights_file, self.snapshot.sizes):
            (settings.folder / name).unlink(missing_ok=True)  # the hub's client would hash the sparse file
        self._download(settings.folder, weights=True)
        on_bytes(self.size - self.settings_size)
        return self.describe_copy(settings.folder, {})

    @property
    def identity(self) -> list[str]:
        """Endpoint, repository and commit, and name and size of each file."""
        files = [f"{name} {size}" for name, size in sorted(self.snapshot.sizes.items())]
        return ["hub", self.snapshot.endpoint, self.snapshot.repo, self.snapshot.commit, *files]

    @property
    def listed_files(self) -> Mapping[str, ListedFile]:
        """The files of the commit, with the digests of the hub."""
        snapshot = self.snapshot
        return {
            name: ListedFile(size, snapshot.sha256.get(name, ""), snapshot.blob_ids.get(name, ""))
            for name, size in snapshot.sizes.items()
        }

    def describe_copy(self, folder: Path, sha256_by_name: Mapping[str, str]) -> FetchedModel:
        """Return the commit and its license."""
        return FetchedModel(folder, self.snapshot.commit, [], self.snapshot.license_fields)

    def _download(self, target: Path, *, weights: bool) -> None:
        from finetune_trainer.inputs import hub

        sizes = {name: size for name, size in self.snapshot.sizes.items() if is_weights_file(name) == weights}
        hub.download_snapshot(replace(self.snapshot, sizes=sizes), target)

    def read_config(self) -> bytes:
        """Download config.json alone."""
        sizes = {name: size for name, size in self.snapshot.sizes.items() if name == CONFIG_NAME}
        return _read_fetched_config(HubModelSource(replace(self.snapshot, sizes=sizes)))


@dataclass(frozen=True)
class VolumeModelSource:
    """A model on a mounted volume, which is read in place."""

    folder: Path

    size = settings_size = 0
    """Nothing is copied."""

    def matches(self, record: ModelRecord) -> bool:
        """Compare the content, which is read completely since a volume has no ETags."""
        return record.revision == self.compute_revision()

    def fetch_settings(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Return the folder."""
        return FetchedModel(self.folder, "", [])

    def fetch_weights(self, settings: FetchedModel, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Hash the files in place."""
        return FetchedModel(self.folder, self.compute_revision(), [])

    def read_config(self) -> bytes:
        """Read config.json in place."""
        return (self.folder / CONFIG_NAME).read_bytes()

    def compute_revision(self) -> str:
        """Return `sha256:…` over names and content of all files, for which they are read completely."""
        return _compute_digest((name, hash_file(self.folder / name)) for name in _list_files(self.folder))


def lists_all_weights(snapshot: HubSnapshot) -> bool:
    """Return whether the hub lists the sizes of all weights. Some mirrors do not."""
    return all(size for name, size in snapshot.sizes.items() if is_weights_file(name))


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
    return _check_model_folder(uri, folder)


def _check_model_folder(uri: str, folder: Path) -> Path:
    if not folder.is_dir() or not any(_list_files(folder)):
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{uri}: no model files at {folder}; check the path")
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
