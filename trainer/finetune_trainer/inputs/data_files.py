"""Selection of the data files in a folder, without hidden, temporary and unreadable files and results of runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import PurePosixPath

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import ADAPTER_CONFIG_NAME
from finetune_trainer.records.manifest import UPLOAD_RECORD_NAME
from finetune_trainer.storage import Location, suggest_name

_DATA_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ""})
"""Suffixes of files that are read in folders. Many programs write JSON Lines to files without a suffix."""
_COMPRESSED_SUFFIXES = (".gz", ".zst")
_TEMPORARY_SUFFIXES = ("~", ".tmp", ".temp", ".part", ".partial", ".crc", ".swp", "_$folder$", "._copying_")
_DOCUMENT_NAMES = frozenset(
    {"readme", "license", "licence", "notice", "copying", "authors", "changelog", "version", "md5sums", "sha256sums"}
)
# Records beside data files, which the `datasets` library leaves out too.
_RECORD_NAMES = frozenset({"config.json", "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"})
_RESULT_MARKERS = frozenset({ADAPTER_CONFIG_NAME, UPLOAD_RECORD_NAME})
"""Names of files in the folder of a result, also of one that is not complete yet."""
_DATA = ""
_HIDDEN = "hidden or temporary"
_OTHER_TYPE = "of another type"
_RESULT = "results of runs"
_MAX_LISTED_NAMES = 5
_EXPECTED_FILES = "expected .jsonl, .json, .csv, .tsv or .parquet, optionally compressed as .gz or .zst"


@dataclass(frozen=True)
class FileSelection:
    """Names of files to read, and of those that are left out."""

    names: list[str]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names of the files that are left out, relative to the folder of the source, by what they are."""

    @property
    def skipped_count(self) -> int:
        """Number of files that are left out."""
        return sum(map(len, self.left_out.values()))

    def describe_left_out(self) -> str:
        """Name the files that are left out, as in `3 files are left out: hidden or temporary (_SUCCESS)`."""
        groups = "; ".join(f"{kind} ({_list_names(names)})" for kind, names in self.left_out.items())
        return f"{self.skipped_count} {'file is' if self.skipped_count == 1 else 'files are'} left out: {groups}"


def select_data_files(uri: str, path: str, names: Sequence[str], output_folder: str | None = None) -> FileSelection:
    """Select the data files among `names`, sorted.

    `path` is a folder that ends with `/`, an empty string for all names, or a pattern with `*`, `?` and `**`; names and
    path are relative to the same folder. `output_folder`, without a `/` at its end, is where the run publishes its
    result. Raises `DATA_NOT_FOUND` with what is there if nothing can be read.
    """
    location = Location("", path)
    matching = [name for name in sorted(names) if location.matches(name)]
    if not matching:
        kind = "no file matches this pattern" if location.is_pattern else "there are no files"
        raise TrainerError(Reason.DATA_NOT_FOUND, f"{uri}: {kind}; {suggest_name(path, names) or 'check the URI'}")
    base = location.base_prefix
    result_folders = _find_result_folders(names, base)
    if output_folder is not None and output_folder.startswith(base):
        result_folders.add(output_folder)
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name in matching:
        by_kind[_find_exclusion(name, path, result_folders)].append(name)
    selected = by_kind.pop(_DATA, [])
    left_out = {kind: [name.removeprefix(base) for name in kind_names] for kind, kind_names in by_kind.items()}
    return _check_selection(uri, FileSelection(selected, left_out))


def select_readable_files(uri: str, names: Collection[str]) -> FileSelection:
    """Leave out hidden files and those of other types. Raises `DATA_NOT_FOUND` if no file is left."""
    return select_data_files(uri, "", list(names))


def _check_selection(uri: str, selection: FileSelection) -> FileSelection:
    if selection.names:
        return selection
    advice = "a file that is named exactly, or by a glob with its suffix such as *.txt, is read as JSON Lines"
    message = f"{uri}: there are no data files; {selection.describe_left_out()}; {_EXPECTED_FILES}; {advice}"
    raise TrainerError(Reason.DATA_NOT_FOUND, message)


def _find_exclusion(name: str, pattern: str, result_folders: set[str]) -> str:
    """Return why a file is left out; `_DATA` if it is read."""
    path = PurePosixPath(name)
    if any(folder.as_posix() in result_folders for folder in path.parents):
        return _RESULT
    if _count_hidden_parts(path) > _count_hidden_parts(PurePosixPath(pattern)):  # named explicitly in the pattern
        return _HIDDEN
    if path.name.lower().endswith(_TEMPORARY_SUFFIXES):
        return _HIDDEN
    requested_suffix = PurePosixPath(pattern).suffix if pattern and not pattern.endswith("/") else ""
    has_requested_suffix = requested_suffix and "*" not in requested_suffix and "?" not in requested_suffix
    return _DATA if has_requested_suffix or _is_readable(path) else _OTHER_TYPE


def _count_hidden_parts(path: PurePosixPath) -> int:
    """Count parts as Hadoop and Spark hide them: `_SUCCESS` and `.crc`, but not the partition `_day=1`."""
    return sum(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in path.parts)


def _is_readable(path: PurePosixPath) -> bool:
    name = path.name.lower()
    stem = PurePosixPath(name.removesuffix(next((s for s in _COMPRESSED_SUFFIXES if name.endswith(s)), "")))
    return stem.suffix in _DATA_SUFFIXES and stem.name not in _DOCUMENT_NAMES and name not in _RECORD_NAMES


def _find_result_folders(names: Sequence[str], base: str) -> set[str]:
    """Return the folders below `base` that contain an adapter, or what a run has begun to upload."""
    folders = {name.rpartition("/")[0] for name in names if PurePosixPath(name).name in _RESULT_MARKERS}
    return {folder for folder in folders if folder.startswith(base) and folder + "/" != base and folder}


def _list_names(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED_NAMES
    return ", ".join(chain(islice(names, _MAX_LISTED_NAMES), [f"and {more} more"] if more > 0 else []))
