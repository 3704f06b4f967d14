"""Finds results in S3 by their manifests, folder by folder, without listing checkpoints and weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from finetune_operator.client.storage_access import StoreReader, locate, translate_storage_errors
from finetune_trainer.records.manifest import MANIFEST_NAME, MERGED_PREFIX
from finetune_trainer.storage import OUTPUT_ERRORS, Location
from finetune_trainer.storage.errors import translate_errors

_MAX_DEPTH = 8
_MAX_FOLDERS = 10_000


class _Folder(NamedTuple):
    location: Location
    depth: int


def find_result_uris(reader: StoreReader, prefix: str) -> Iterator[str]:
    """Yield the URIs of the folders with a manifest, the outer ones first.

    A prefix with the placeholders `{namespace}` and `{name}` stands for the folder before the first of them.
    """
    base = prefix.partition("{")[0]
    base = base if base == prefix else base.rpartition("/")[0]
    pending = deque([_Folder(locate(base.rstrip("/") + "/"), 0)])
    for _ in range(_MAX_FOLDERS):
        if not pending:
            return
        folder = pending.popleft()
        with translate_storage_errors():
            has_manifest, children = _list_folder(reader, folder)
        if has_manifest:
            yield str(folder.location).rstrip("/")
        pending.extend(children)


def _list_folder(reader: StoreReader, folder: _Folder) -> tuple[bool, list[_Folder]]:
    """Return whether a folder has a manifest, and the folders in it that may contain results."""
    bucket = reader.s3.bucket(folder.location.bucket)
    manifest_key = folder.location.key + MANIFEST_NAME
    has_manifest, children = False, list[_Folder]()
    with translate_errors(folder.location, bucket.endpoint, OUTPUT_ERRORS):
        pages = bucket.client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket.name, Prefix=folder.location.key, Delimiter="/"
        )
        for page in pages:
            has_manifest = has_manifest or any(entry["Key"] == manifest_key for entry in page.get("Contents", []))
            keys = [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
            names = [key.removeprefix(folder.location.key) for key in keys]
            children += [
                _Folder(folder.location.child(name), folder.depth + 1) for name in names if _may_have_results(name)
            ]
    return has_manifest, children if folder.depth < _MAX_DEPTH else []


def _may_have_results(name: str) -> bool:
    """Return whether a folder may contain results. Checkpoints and rejected adapters are in hidden folders."""
    return not name.startswith(".") and name not in (MERGED_PREFIX, "/")
