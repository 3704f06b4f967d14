"""Connections to S3: one boto3 session, and for each bucket a boto3 client and an obstore store."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store

from finetune_trainer.contract import CA_BUNDLE_ENV, S3_CREDENTIALS_DIR_ENV, S3_CREDENTIALS_KEYS, Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.endpoints import check_endpoint
from finetune_trainer.storage.errors import OUTPUT_ERRORS, build_no_credentials_error, translate_errors
from finetune_trainer.storage.retry import BOTO3_ATTEMPTS, OBSTORE_RETRY_CONFIG

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config
    from types_boto3_s3.client import S3Client

_DEFAULT_REGION = "us-east-1"
# botocore renews credentials 10 minutes before they expire. obstore must not cache them for longer than that, and it
# requests them again 5 minutes before its copy expires.
_CREDENTIALS_TTL = timedelta(minutes=9)
_CONNECT_TIMEOUT_SECONDS, _READ_TIMEOUT_SECONDS = 5, 15


@dataclass(frozen=True)
class Bucket:
    """A bucket with a boto3 client (lists and metadata, with precise errors) and an obstore store (transfers)."""

    name: str
    endpoint: str
    client: S3Client
    store: S3Store


class S3:
    """S3 as configured by `spec.storage` and the environment. Safe to use from several threads.

    Credentials are looked for when the first bucket is used: a plan of local data and a local model needs none.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._buckets: dict[str, Bucket] = {}
        self.bytes_transferred = 0
        """Approximate bytes of files sent and received; transfers are not stalled while it grows."""
        self._lock = threading.Lock()  # clients are safe to share between threads, sessions are not

    def bucket(self, name: str) -> Bucket:
        """Return the connection to a bucket, which is created once."""
        with self._lock:
            if name not in self._buckets:
                self._buckets[name] = self._connect_bucket(name)
            return self._buckets[name]

    @cached_property
    def _session(self) -> boto3.Session:
        return _create_session(self._storage.region)

    def _connect_bucket(self, name: str) -> Bucket:
        region = self._session.region_name or _DEFAULT_REGION
        client = self._create_client(region)
        check_endpoint(client.meta.endpoint_url)
        if self._storage.region is None and _is_aws_endpoint(client):
            region = _find_bucket_region(client, name, region)
            client = self._create_client(region)
        return Bucket(name, client.meta.endpoint_url, client, self._create_store(client, name, region))

    def _create_client(self, region: str) -> S3Client:
        checksums: Literal["when_required", "when_supported"]
        checksums = "when_required" if self._storage.checksums == "whenRequired" else "when_supported"
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT_SECONDS,
            read_timeout=_READ_TIMEOUT_SECONDS,
            retries={"mode": "standard", "total_max_attempts": BOTO3_ATTEMPTS},
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
            s3={"addressing_style": self._storage.addressing},
        )
        try:
            return self._session.client("s3", region_name=region, endpoint_url=self._storage.endpoint, config=config)
        except (ValueError, boto.BotoCoreError) as error:
            message = f"storage.endpoint, or the region {region!r}, is invalid: {error}; correct it"
            raise TrainerError(Reason.CONFIG_INVALID, message) from error

    def _create_store(self, client: S3Client, name: str, region: str) -> S3Store:
        is_virtual_hosted = self._uses_virtual_hosting(client, name)
        endpoint = client.meta.endpoint_url.rstrip("/")
        if is_virtual_hosted:
            endpoint = endpoint.replace("://", f"://{name}.", 1)
            check_endpoint(endpoint)
        # obstore also reads AWS_* from the environment. Everything that decides on the host is set here, so that both
        # libraries use the same one (AWS_ENDPOINT_URL_S3 would take precedence over `endpoint`).
        config: S3Config = {
            "region": region,
            "endpoint": endpoint,
            "aws_endpoint_url_s3": endpoint,
            "virtual_hosted_style_request": is_virtual_hosted,
            "skip_signature": False,
        }
        if self._storage.checksums == "auto":
            config["checksum_algorithm"] = "SHA256"
        provider = Boto3CredentialProvider(self._session, ttl=_CREDENTIALS_TTL)
        provider.config = {}  # the session's region, which may not be this bucket's
        return S3Store(
            name,
            config=config,
            client_options=_build_http_options(endpoint),
            retry_config=OBSTORE_RETRY_CONFIG,
            credential_provider=provider,
        )

    def _uses_virtual_hosting(self, client: S3Client, name: str) -> bool:
        if self._storage.addressing != "auto":
            return self._storage.addressing == "virtual"
        # A wildcard certificate does not match a name with a dot: https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
        return _is_aws_endpoint(client) and "." not in name


def _build_http_options(endpoint: str) -> ClientConfig:
    options: ClientConfig = {
        # The scheme of the endpoint decides: http is a choice of the user, and https is never redirected to it.
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_SECONDS),
        "read_timeout": timedelta(seconds=_READ_TIMEOUT_SECONDS),
        "timeout": timedelta(minutes=5),  # of one request, which transfers at most a part of a large object
    }
    ca_bundle = os.environ.get(CA_BUNDLE_ENV)
    if ca_bundle:
        try:
            options["root_certificate"] = Path(ca_bundle).read_bytes()
        except OSError as error:
            message = f"{CA_BUNDLE_ENV}={ca_bundle} cannot be read: {error.strerror}"
            raise TrainerError(Reason.CONFIG_INVALID, message) from error
    return options


def _is_aws_endpoint(client: S3Client) -> bool:
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _find_bucket_region(client: S3Client, name: str, default: str) -> str:
    """Return the region of a bucket, which AWS reports even without access. obstore does not follow redirects to it."""
    with translate_errors(f"s3://{name}", client.meta.endpoint_url, OUTPUT_ERRORS):
        try:
            headers = client.head_bucket(Bucket=name)["ResponseMetadata"]["HTTPHeaders"]
        except boto.ClientError as error:
            headers = error.response["ResponseMetadata"]["HTTPHeaders"]
    return headers.get("x-amz-bucket-region", default)


def _create_session(region: str | None) -> boto3.Session:
    """Create a session with the keys of the mounted Secret only; without a Secret, with what boto3 finds."""
    folder = os.environ.get(S3_CREDENTIALS_DIR_ENV)
    if folder:
        key_id, secret, token = (_read_secret_key(Path(folder), name) for name in S3_CREDENTIALS_KEYS)
        return boto3.Session(key_id, secret, token, region_name=region)
    try:
        session = boto3.Session(region_name=region)
        credentials = session.get_credentials()
    except boto.BotoCoreError as error:
        raise build_no_credentials_error(str(error)) from error
    if credentials is None:
        raise build_no_credentials_error("boto3 found none")
    return session


def _read_secret_key(folder: Path, name: str) -> str | None:
    try:
        value = (folder / name).read_text().strip()
    except FileNotFoundError:
        value = ""
    if not value and name != "AWS_SESSION_TOKEN":
        # Never fall back to another identity: that of the node may have more permissions than the tenant.
        raise TrainerError(Reason.AUTH_FAILED, f"the credentials Secret has no key {name} (mounted at {folder})")
    return value or None
