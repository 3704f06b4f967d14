"""Datasets on the Hugging Face hub: resolves a commit and the files of a subset and split, and downloads these files.

The `datasets` library decides which files a subset and split have, from the names of the files and the `configs` in the
README. The files are read by the trainer's own readers.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import httpx
import yaml
from huggingface_hub import HfApi, HfUri, hf_hub_download, parse_hf_uri
from huggingface_hub.errors import HfUriError

from finetune_trainer.contract import DataSource, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.data_files import FileSelection, select_data_files, select_readable_files
from finetune_trainer.inputs.hub_client import DATASET, TIMEOUT_SECONDS, get_endpoint, read_token, translate_errors
from finetune_trainer.records.manifest import InputRecord
from finetune_trainer.storage import InputFile, find_name_problem
from finetune_trainer.storage.local_files import hash_file

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo

_DEFAULT_SUBSET, _DEFAULT_SPLIT = "default", "train"
_CONVERTED_FILE = re.compile(r"(?P<subset>[^/]+)/(?P<split>[^/]+)/\d+\.parquet")
_CONVERTED_REVISION = re.compile("@refs(?:/|%2F)convert(?:/|%2F)parquet", re.IGNORECASE)
_RESOLUTION_ERRORS = (ValueError, OSError, yaml.YAMLError, httpx.HTTPError)
"""Errors of the `datasets` library for wrong cards, and for cards that name files elsewhere."""
_CARD_NAMES = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""Files in which the subsets of a dataset are configured."""
_SHA256_LENGTH = 64
_MAX_CONCURRENT_FILES = 8


@dataclass(frozen=True)
class HubFile:
    """A file at one commit. `etag` is its SHA-256 digest if the hub stores it outside of Git, or else its blob ID."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class HubDataset:
    """The files of a dataset repository at one commit, by name."""

    repo: str
    commit: str
    files: Mapping[str, HubFile]

    def download(self, name: str, target: Path) -> Path:
        """Download a file to `target`, under its name in the repository."""
        problem = find_name_problem(name)
        if problem:
            message = f"{self.build_uri(name)}: this file cannot be stored: {problem}"
            raise TrainerError(Reason.DATA_INVALID, message)
        with translate_errors(DATASET, self.repo, self.commit):
            path = hf_hub_download(
                self.repo,
                name,
                repo_type=DATASET.name,
                revision=self.commit,
                local_dir=target,
                token=read_token(DATASET),
                endpoint=get_endpoint(),
                etag_timeout=TIMEOUT_SECONDS,
            )
        return Path(path)

    def fetch_file(self, file: HubFile, target: Path) -> InputFile:
        """Download a file and hash it. Raises `STORAGE_CORRUPT` if the hub lists another digest."""
        path, uri = self.download(file.name, target), self.build_uri(file.name)
        digest = hash_file(path)
        if len(file.etag) == _SHA256_LENGTH and file.etag != digest:
            raise TrainerError(
                Reason.STORAGE_CORRUPT, f"{uri}: the content does not match the digest that the hub lists"
            )
        return InputFile(uri, path, path.stat().st_size, file.etag, digest)

    def build_uri(self, name: str) -> str:
        """Return the URI of a file at the commit."""
        return f"hf://datasets/{self.repo}@{self.commit}/{name}"


@dataclass(frozen=True)
class HubDataListing:
    """The files of one source on the hub."""

    dataset: HubDataset
    selection: FileSelection

    @property
    def files(self) -> list[HubFile]:
        """The files to read."""
        return [self.dataset.files[name] for name in self.selection.names]

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files)

    def list_records(self) -> list[InputRecord]:
        """Return the files as the hub lists them. Their URIs contain the commit."""
        uris = map(self.dataset.build_uri, self.selection.names)
        return [
            InputRecord(uri=uri, etag=file.etag, size=file.size) for uri, file in zip(uris, self.files, strict=True)
        ]

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> list[InputFile]:
        """Download the files of the commit."""

        def fetch_file(file: HubFile) -> InputFile:
            input_file = self.dataset.fetch_file(file, target)
            on_bytes(file.size)
            return input_file

        with ThreadPoolExecutor(_MAX_CONCURRENT_FILES, "hub") as executor:
            files = list(executor.map(fetch_file, self.files))
        shutil.rmtree(target / ".cache", ignore_errors=True)  # records of the hub's client
        return files


def list_hub_data(source: DataSource) -> HubDataListing:
    """Resolve the revision of a source to a commit, and list the files to read.

    Raises `DATA_NOT_FOUND`, with the names that exist, for a repository, revision, subset, split or file that does not
    exist, and the errors of the hub.
    """
    uri = _parse_uri(source)
    dataset = _resolve_dataset(uri.id, uri.revision or "main")
    path = uri.path_in_repo
    if not path:
        return HubDataListing(dataset, select_readable_files(source.uri, _resolve_split(source, dataset)))
    if path in dataset.files:
        return HubDataListing(dataset, FileSelection([path]))
    is_pattern = "*" in path or "?" in path
    selection = select_data_files(source.uri, path if is_pattern else f"{path}/", list(dataset.files))
    return HubDataListing(dataset, selection)


def list_repository(source: DataSource) -> HubDataListing:
    """Resolve the revision of a source to a commit, and list all data files of the repository, whatever subset, split
    and path the source has. Raises as `list_hub_data`."""
    uri = _parse_uri(source)
    dataset = _resolve_dataset(uri.id, uri.revision or "main")
    return HubDataListing(dataset, select_readable_files(source.uri, list(dataset.files)))


def has_path(source: DataSource) -> bool:
    """Return whether a source names files itself. Otherwise, the `datasets` library decides which files it has."""
    return bool(_parse_uri(source).path_in_repo)


def _parse_uri(source: DataSource) -> HfUri:
    try:
        return parse_hf_uri(source.uri)
    except HfUriError as error:
        raise TrainerError(Reason.CONFIG_INVALID, f"{source.uri}: {error}") from error


def _resolve_dataset(repo: str, revision: str) -> HubDataset:
    with translate_errors(DATASET, repo, revision):
        info: DatasetInfo = HfApi(endpoint=get_endpoint(), token=read_token(DATASET)).dataset_info(
            repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    files = {
        entry.rfilename: HubFile(
            entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else entry.blob_id or ""
        )
        for entry in info.siblings or []
    }
    if info.sha is None or not files:
        raise TrainerError(Reason.DATA_NOT_FOUND, f"hf://datasets/{repo} at {revision} has no files")
    return HubDataset(repo, info.sha, files)


def _resolve_split(source: DataSource, dataset: HubDataset) -> list[str]:
    """Return the names of the files of a subset and split."""
    is_converted = any(_CONVERTED_FILE.fullmatch(name) for name in dataset.files) and _CONVERTED_REVISION.search(
        source.uri
    )
    files_by_split = _resolve_converted(source, dataset) if is_converted else _resolve_subset(source, dataset)
    split = source.split or _DEFAULT_SPLIT
    if split not in files_by_split:
        names = ", ".join(files_by_split) or "none"
        message = f"{source.uri}: there is no split {split!r}; its splits are {names}: set split to one of them"
        raise TrainerError(Reason.DATA_NOT_FOUND, message)
    return files_by_split[split]


def _resolve_converted(source: DataSource, dataset: HubDataset) -> dict[str, list[str]]:
    """Return the names of the files of a subset by split in the branch of the hub with Parquet files.

    Its folders are named after the subset and the split: https://huggingface.co/docs/dataset-viewer/parquet. It has no
    README, from which the `datasets` library would know the subsets.
    """
    subsets: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for match in filter(None, map(_CONVERTED_FILE.fullmatch, sorted(dataset.files))):
        subsets[match["subset"]][match["split"]].append(match[0])
    subset = source.subset or (next(iter(subsets)) if len(subsets) == 1 else _DEFAULT_SUBSET)
    if subset not in subsets:
        raise _build_choice_error(source, subsets)
    return subsets[subset]


def _resolve_subset(source: DataSource, dataset: HubDataset) -> dict[str, list[str]]:
    """Return the names of the files of a subset by split, as the `datasets` library resolves them.

    The library sees a folder of empty files, so that one request lists the files, and no other file is downloaded.
    """
    import datasets
    from datasets.data_files import EmptyDatasetError

    with TemporaryDirectory(prefix="dataset-") as temporary_folder:
        folder = Path(temporary_folder, "files").resolve()
        _write_skeleton(dataset, folder)
        try:
            builder = datasets.load_dataset_builder(
                str(folder), name=source.subset, cache_dir=str(Path(temporary_folder, "cache"))
            )
            data_files = builder.config.data_files or {}
            return {
                str(split): [Path(path).relative_to(folder).as_posix() for path in paths]
                for split, paths in data_files.items()
            }
        except EmptyDatasetError:
            return {_DEFAULT_SPLIT: list(dataset.files)}  # whose types are refused by name
        except _RESOLUTION_ERRORS as error:
            raise _build_subset_error(source, folder, error) from error


def _write_skeleton(dataset: HubDataset, folder: Path) -> None:
    """Write empty files with the names of the dataset's files, and its card.

    Archives are left out, which the library would open to see what they contain.
    """
    folder.mkdir()
    for name in dataset.files:
        if not find_name_problem(name) and not name.lower().endswith(".zip"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    for name in _CARD_NAMES:
        if name in dataset.files:
            (folder / name).unlink()
            dataset.download(name, folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _build_subset_error(source: DataSource, folder: Path, error: Exception) -> TrainerError:
    """Build the error for a subset that does not exist, or for a choice that has to be made."""
    import datasets

    try:
        subsets = datasets.get_dataset_config_names(str(folder))
    except _RESOLUTION_ERRORS:
        subsets = []
    if subsets and (source.subset not in subsets) and (source.subset or len(subsets) > 1):
        return _build_choice_error(source, subsets)
    detail = " ".join(str(error).replace(str(folder), source.uri).split())
    message = f"{source.uri}: its subsets cannot be resolved ({detail[:200]}); name the files with a path or a glob"
    return TrainerError(Reason.DATA_INVALID, message)


def _build_choice_error(source: DataSource, subsets: Iterable[str]) -> TrainerError:
    problem = f"there is no subset {source.subset!r}" if source.subset else "it has several subsets and no default"
    message = f"{source.uri}: {problem}; set subset to one of {', '.join(subsets)}"
    return TrainerError(Reason.DATA_NOT_FOUND, message)
