"""One transfer in a separate process: `transfer.py CLIENT pull|push ENDPOINT s3://bucket/prefix FOLDER`.

Each client also computes the SHA-256 of each file, as the trainer does. The wall-clock and CPU seconds that are printed
do not include the start of Python and the imports.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Digests = dict[str, str]


def transfer_with_trainer(direction: str, endpoint: str, uri: str, folder: Path) -> Digests:
    """Transfer as the trainer does, with pinned ETags."""
    from finetune_trainer.contract import Storage
    from finetune_trainer.storage import DATA_ERRORS, S3, Location, download_objects, find_objects, put_file

    s3, prefix = S3(Storage(endpoint=endpoint)), Location.parse_folder(uri)
    if direction == "pull":
        files = download_objects(s3, find_objects(s3, prefix, DATA_ERRORS), folder, DATA_ERRORS, lambda _: None)
        return {file.path.name: file.sha256 for file in files}
    paths = sorted(folder.iterdir())
    with ThreadPoolExecutor(8) as pool:
        digests = pool.map(lambda path: put_file(s3, prefix.child(path.name), path), paths)
        return {path.name: digest for path, digest in zip(paths, digests, strict=True)}


def transfer_with_boto3(direction: str, endpoint: str, uri: str, folder: Path) -> Digests:
    """Transfer with boto3 as its documentation shows, in 16 threads."""
    import boto3 as library
    from botocore.config import Config

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = library.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=32))

    def pull(key: str) -> tuple[str, str]:
        path = folder / key.rpartition("/")[2]
        client.download_file(bucket, key, str(path))
        return path.name, _sha256(path)

    def push(path: Path) -> tuple[str, str]:
        client.upload_file(str(path), bucket, f"{prefix}/{path.name}")
        return path.name, _sha256(path)

    with ThreadPoolExecutor(16) as pool:
        if direction == "push":
            return dict(pool.map(push, sorted(folder.iterdir())))
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/")
        return dict(pool.map(pull, [entry["Key"] for page in pages for entry in page["Contents"]]))


def transfer_with_s5cmd(direction: str, endpoint: str, uri: str, folder: Path) -> Digests:
    """Transfer with s5cmd and its defaults."""
    source, target = (f"{uri}/*", f"{folder}/") if direction == "pull" else (f"{folder}/", f"{uri}/")
    subprocess.run(["s5cmd", "--log", "error", "--endpoint-url", endpoint, "cp", source, target], check=True)
    return hash_only(direction, endpoint, uri, folder)


def hash_only(direction: str, endpoint: str, uri: str, folder: Path) -> Digests:
    """Compute the digests only, to show their share of the cost."""
    paths = sorted(folder.iterdir())
    with ThreadPoolExecutor(16) as pool:
        return dict(zip([path.name for path in paths], pool.map(_sha256, paths), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


CLIENTS = {
    "ours": transfer_with_trainer,
    "boto3": transfer_with_boto3,
    "s5cmd": transfer_with_s5cmd,
    "sha256 alone": hash_only,
}
_IMPORTS = {"ours": "finetune_trainer.storage", "boto3": "boto3.s3.transfer"}

if __name__ == "__main__":
    name, direction, endpoint, uri, folder = sys.argv[1:]
    importlib.import_module(_IMPORTS.get(name, "json"))
    wall, cpu = time.monotonic(), _cpu_seconds()
    digests = CLIENTS[name](direction, endpoint, uri, Path(folder))
    print(json.dumps({"wall": time.monotonic() - wall, "cpu": _cpu_seconds() - cpu, "digests": digests}))
