"""The base model's three homes: an S3 prefix, the hub, a volume. Each can be named before it is fetched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from finetune_trainer.contract import CLAIMS_DIR_ENV, ModelSource, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import adapters
from finetune_trainer.records.manifest import InputRecord, ModelRecord
from finetune_trainer.storage import MODEL, S3, InputFile, Location, S3Object, download, find

if TYPE_CHECKING:
    from finetune_trainer.inputs.hub import HubModel

# Copies of the weights for other programs, and folders that hold such copies. What is left is checked, not skipped:
# a model with Python or pickle files is refused by `model.check_model_dir`.
_CLUTTER = {".gguf", ".onnx", ".msgpack", ".h5", ".ot", ".tflite", ".mlmodel", ".md", ".png", ".jpg", ".gitattributes"}
_CLUTTER_FOLDERS = {"original", "onnx", "openvino", "coreml"}


@dataclass(frozen=True)
class FetchedModel:
    """A base model on disk."""

    folder: Path
    revision: str
    """The hub's commit, or `sha256:…` over every file's name and digest."""
    files: list[InputFile]
    """What came from S3; empty for the other homes, which their revision identifies."""


class BaseModel(Protocol):
    """A base model that has been found but not read yet."""

    @property
    def size(self) -> int:
        """Bytes that `fetch` will write."""

    def matches(self, record: ModelRecord) -> bool:
        """Whether an earlier run used the very same model."""

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Bring it to disk."""


def locate(source: ModelSource, s3: S3) -> BaseModel:
    """Find the model; whatever can be wrong with its place is told here."""
    if source.uri.startswith("s3://"):
        location = Location.folder(source.uri)
        return S3Model(s3, [each for each in find(s3, location, MODEL) if is_needed(each.name)])
    if source.uri.startswith("hf://"):
        from finetune_trainer.inputs import hub  # only those who use the hub load its client

        return HubBaseModel(hub.resolve(source.uri, source.revision))
    return ClaimModel(_claim_folder(source.uri))


def locate_adapter(source: ModelSource, s3: S3) -> S3Model | None:
    """Find the adapter to train on, if one is asked for."""
    if source.adapter_uri is None:
        return None
    found = find(s3, Location.folder(source.adapter_uri), MODEL)
    needed = [each for each in found if each.name in adapters.FILES]
    missing = [name for name in adapters.FILES if name not in [each.name for each in needed]]
    if missing:
        message = f"{source.adapter_uri} holds no {missing[0]}; model.adapterURI is a LoRA adapter's prefix"
        raise TrainerError(Reason.MODEL_NOT_FOUND, message)
    return S3Model(s3, needed)


def is_needed(name: str) -> bool:
    """Whether a file of a model's folder is taken along."""
    path = Path(name)
    if path.suffix.lower() in _CLUTTER or path.name.startswith((".", "consolidated")):
        return False
    return not _CLUTTER_FOLDERS.intersection(path.parts[:-1])


@dataclass(frozen=True)
class S3Model:
    """A model below an S3 prefix."""

    s3: S3
    objects: Sequence[S3Object]

    @property
    def size(self) -> int:
        """The sum of its objects."""
        return sum(each.size for each in self.objects)

    def matches(self, record: ModelRecord) -> bool:
        """Same keys, sizes and ETags."""
        return [InputRecord.listed(each) for each in self.objects] == [each.as_listed() for each in record.files]

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download all of it."""
        files = download(self.s3, self.objects, target, MODEL, on_bytes)
        names = [each.name for each in self.objects]
        revision = _digest(zip(names, (each.sha256 for each in files), strict=True))
        return FetchedModel(target, revision, files)


@dataclass(frozen=True)
class HubBaseModel:
    """A model on the hub, at one commit."""

    model: HubModel

    @property
    def size(self) -> int:
        """The sum of its needed files."""
        return sum(self.model.sizes.values())

    def matches(self, record: ModelRecord) -> bool:
        """Same commit."""
        return record.revision == self.model.commit

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download the commit's files."""
        from finetune_trainer.inputs import hub

        hub.download(self.model, target)
        on_bytes(self.size)
        return FetchedModel(target, self.model.commit, [])


@dataclass(frozen=True)
class ClaimModel:
    """A model on a mounted volume; it is read where it lies."""

    folder: Path

    @property
    def size(self) -> int:
        """Nothing is copied."""
        return 0

    def matches(self, record: ModelRecord) -> bool:
        """Same content: a volume has no ETags, so all of it is read."""
        return record.revision == self._revision()

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Hash it, in place."""
        return FetchedModel(self.folder, self._revision(), [])

    def _revision(self) -> str:
        return _digest((name, _sha256(self.folder / name)) for name in _files(self.folder))


def _claim_folder(uri: str) -> Path:
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    root = os.environ.get(CLAIMS_DIR_ENV)
    if not root:
        message = f"{uri}: {CLAIMS_DIR_ENV} is not set; by hand, point it to a folder that holds {claim}/{path}"
        raise TrainerError(Reason.MODEL_NOT_FOUND, message)
    volume = (Path(root) / claim).resolve()
    folder = (volume / path).resolve()
    if not folder.is_relative_to(volume):
        raise TrainerError(Reason.MODEL_INVALID, f"{uri}: this path leaves the volume")
    outside = next((name for name in _links(folder) if not (folder / name).resolve().is_relative_to(volume)), None)
    if outside:
        raise TrainerError(Reason.MODEL_INVALID, f"{uri}: {outside!r} is a link that leaves the volume")
    if not folder.is_dir() or not any(_files(folder)):
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{uri}: no model files at {folder}; check the claim's content")
    return folder


def _links(folder: Path) -> Iterator[str]:
    """To folders too: a library may read what lies in them, though `_files` does not."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink())
    return (name for name in names if is_needed(name) and is_needed(f"{name}/x"))  # it may be a folder


def _files(folder: Path) -> Iterator[str]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return (name for name in names if is_needed(name))


def _digest(names_and_digests: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(names_and_digests))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
