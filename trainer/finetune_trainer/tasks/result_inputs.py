"""The inputs of a published result as its manifest records them, and what has changed since then."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from finetune_trainer.contract import DataSource
from finetune_trainer.inputs.base_model import ADAPTER_FILES
from finetune_trainer.records.manifest import AdapterManifest, InputRecord
from finetune_trainer.storage import Location

_HUB_FILE = re.compile(r"(hf://datasets/[^/@]+/[^/@]+)@([^/]+)/(.+)", re.DOTALL)


class HubFileUri(NamedTuple):
    """The parts of the URI of a file of a dataset on the hub, at one commit."""

    repository: str
    """`hf://datasets/OWNER/NAME`."""
    commit: str
    name: str


class Change(NamedTuple):
    """The difference between two lists of files."""

    added_bytes: int
    """Size of new files, and what changed files have grown by."""
    removed_files: int
    """Number of files that are gone, or whose content changed without growing."""


def parse_hub_uri(uri: str) -> HubFileUri | None:
    """Split the URI of a recorded file. Returns None if it is not on the hub."""
    match = _HUB_FILE.fullmatch(uri)
    return HubFileUri(match[1], match[2], match[3]) if match else None


def select_data_records(manifest: AdapterManifest) -> list[InputRecord]:
    """Return the records of the files that rows were read from.

    A manifest also lists the sentence pairs of the evaluation, the adapter that training started from, and baselines,
    in this order.
    """
    adapter_files = set(_iterate_adapter_files(manifest.config))
    records = [record for record in manifest.inputs if record.uri not in adapter_files]
    pairs_uri = ((manifest.config.get("evaluation") or {}).get("bias") or {}).get("pairsURI")
    pairs: set[str] = set()  # a folder of data may contain them too, so each is left out once
    while pairs_uri and records and _is_at(records[-1].uri, pairs_uri) and records[-1].uri not in pairs:
        pairs.add(records.pop().uri)
    return records


def has_source(manifest: AdapterManifest, source: DataSource) -> bool:
    """Return whether the run of a result read the same subset and split of the same location."""
    wanted = (source.uri, source.subset, source.split)
    sources = _iterate_sources(manifest.config)
    return any((each.get("uri"), each.get("subset"), each.get("split")) == wanted for each in sources)


def compare_files(earlier: Iterable[InputRecord], current: Iterable[InputRecord]) -> Change:
    """Compare the files of two lists by their URIs, those of the hub whatever commit they are of."""
    earlier_files, current_files = _index_files(earlier), _index_files(current)
    added_bytes, removed_files = 0, len(earlier_files.keys() - current_files.keys())
    for uri, file in current_files.items():
        earlier_file = earlier_files.get(uri)
        earlier_size = earlier_file.size if earlier_file else 0
        if earlier_file is None or file.size > earlier_size:
            added_bytes += file.size - earlier_size
        elif file.etag != earlier_file.etag:
            removed_files += 1
    return Change(added_bytes, removed_files)


def _index_files(records: Iterable[InputRecord]) -> dict[str, InputRecord]:
    return {_remove_commit(record.uri): record for record in records}


def _remove_commit(uri: str) -> str:
    file = parse_hub_uri(uri)
    return f"{file.repository}/{file.name}" if file else uri


def _is_at(uri: str, location: str) -> bool:
    return uri == location or (location.endswith("/") and uri.startswith(location))


def _iterate_adapter_files(config: Mapping[str, Any]) -> Iterator[str]:
    baselines: Sequence[Mapping[str, Any]] = (config.get("evaluation") or {}).get("baselines") or []
    uris = [(config.get("model") or {}).get("adapterURI"), *(each.get("adapterURI") for each in baselines)]
    for uri in filter(None, uris):
        yield from (str(Location.parse_folder(uri).child(name)) for name in ADAPTER_FILES)


def _iterate_sources(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    dataset, evaluation = config.get("dataset") or {}, config.get("evaluation") or {}
    for part in (dataset, dataset.get("validation") or {}, evaluation.get("test") or {}):
        yield from part.get("sources") or []
