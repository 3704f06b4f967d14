"""Uploading files to a cluster's S3 server, and listing its objects, from the host."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3

from local_cluster.cluster import S3Endpoint

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client


class S3Objects:
    """The buckets of one S3 server."""

    def __init__(self, endpoint: S3Endpoint) -> None:
        _bypass_proxy(endpoint.url)
        self._client: S3Client = boto3.client(
            "s3",
            endpoint_url=endpoint.url,
            region_name=endpoint.region,
            aws_access_key_id=endpoint.access_key,
            aws_secret_access_key=endpoint.secret_key,
        )

    def ensure_bucket(self, name: str) -> None:
        existing_buckets = {bucket.get("Name") for bucket in self._client.list_buckets()["Buckets"]}
        if name not in existing_buckets:
            self._client.create_bucket(Bucket=name)

    def upload(self, file: Path, bucket: str, key: str) -> None:
        """Upload a file unless an object of that key and size exists."""
        if dict(self.list_objects(bucket, key)).get(key) != file.stat().st_size:
            self._client.upload_file(str(file), bucket, key)

    def download(self, bucket: str, key: str, file: Path) -> None:
        """Download an object to a file, and create the folder of the file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._client.download_file(bucket, key, str(file))

    def list_objects(self, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield the key and the size in bytes of each object."""
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                yield entry["Key"], entry["Size"]


def _bypass_proxy(url: str) -> None:
    """Exclude the host of `url` from proxies: a proxy cannot reach a cluster on this machine."""
    host = urlsplit(url).hostname or ""
    for variable in ("NO_PROXY", "no_proxy"):
        os.environ[variable] = ",".join(filter(None, [os.environ.get(variable), host]))
