"""One transfer of the benchmark as a process: `transfer.py CLIENT pull|push ENDPOINT s3://bucket/prefix FOLDER`.

Prints wall and CPU seconds of the transfer, without the imports.
"""

from __future__ import annotations

import importlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def ours(direction: str, endpoint: str, uri: str, folder: Path) -> None:
    """As the trainer does it, with its digests and pinned ETags."""
    from finetune_trainer.contract import Storage
    from finetune_trainer.storage import DATA, S3, Location, download, find, put_file

    s3, prefix = S3(Storage(endpoint=endpoint)), Location.folder(uri)
    if direction == "pull":
        download(s3, find(s3, prefix, DATA), folder, DATA, lambda _: None)
        return
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: put_file(s3, prefix.below(path.name), path), sorted(folder.iterdir())))


def boto3(direction: str, endpoint: str, uri: str, folder: Path) -> None:
    """As its documentation shows it, in 16 threads."""
    import boto3 as library
    from botocore.config import Config

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = library.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=32))

    def pull(key: str) -> None:
        client.download_file(bucket, key, str(folder / key.rpartition("/")[2]))

    def push(path: Path) -> None:
        client.upload_file(str(path), bucket, f"{prefix}/{path.name}")

    with ThreadPoolExecutor(16) as pool:
        if direction == "push":
            list(pool.map(push, sorted(folder.iterdir())))
            return
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/")
        list(pool.map(pull, [each["Key"] for page in pages for each in page["Contents"]]))


if __name__ == "__main__":
    name, direction, endpoint, uri, folder = sys.argv[1:]
    importlib.import_module({"ours": "finetune_trainer.storage", "boto3": "boto3.s3.transfer"}[name])
    wall, cpu = time.monotonic(), time.process_time()
    {"ours": ours, "boto3": boto3}[name](direction, endpoint, uri, Path(folder))
    print(time.monotonic() - wall, time.process_time() - cpu)
