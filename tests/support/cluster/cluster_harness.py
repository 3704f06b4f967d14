"""A namespace and a bucket for FineTuneJobs in a cluster with real images, a real kubelet and a real S3 server."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from finetune_operator.api import API_VERSION, KIND

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

    from local_cluster.cluster import Cluster

Manifest = dict[str, Any]
ROWS = [{"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"Gladly: {n}."}]}
        for n in range(16)]  # fmt: skip
UNSUPPORTED_ROWS = [{"question": "What is it?", "answer": "Something else."}]
TERMINAL_PHASES = ("Complete", "Failed", "Cancelled")
SECRET, WRONG_SECRET, UNKNOWN_SECRET = "s3-credentials", "wrong-secret-key", "unknown-key-id"


class ClusterHarness:
    """A namespace and a bucket, and helpers to create FineTuneJobs there and to wait for them."""

    def __init__(self, cluster: "Cluster", s3: "S3Client") -> None:
        self.token = secrets.token_hex(4)
        self.namespace = self.bucket = f"flow-{self.token}"
        self.s3 = s3
        self._cluster = cluster

    def set_up(self, model: Path) -> None:
        """Upload data and base model; create a namespace with restricted Pod Security and its Secrets."""
        self.s3.create_bucket(Bucket=self.bucket)
        for key, body in _build_bucket_objects().items():
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)
        for file in sorted(model.iterdir()):
            self.s3.upload_file(str(file), self.bucket, f"base/{file.name}")
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self._cluster.kubectl(
            "create", "--filename=-", stdin=dump_object("v1", "Namespace", self.namespace, labels=labels)
        )
        credentials = self._cluster.s3
        key_pairs = {
            SECRET: (credentials.access_key, credentials.secret_key),
            WRONG_SECRET: (credentials.access_key, "wrong"),
            UNKNOWN_SECRET: ("unknown", credentials.secret_key),
        }
        for name, (key_id, key) in key_pairs.items():
            self.create_object(
                dump_object(
                    "v1", "Secret", name, stringData={"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": key}
                )
            )

    def tear_down(self) -> None:
        self._cluster.kubectl("delete", "namespace", self.namespace, "--wait=false")

    def fill_placeholders(self, template: str) -> str:
        return template.replace("{bucket}", self.bucket).replace("{token}", self.token)

    def build_manifest(self, name: str, **changes: Any) -> str:
        """Return a FineTuneJob as JSON. It succeeds unless the changes make it fail."""
        spec = {
            "model": {"uri": self.fill_placeholders(changes.get("model", "s3://{bucket}/base/")), "maxLength": 128},
            "dataset": {"sources": [
                {
                    "uri": self.fill_placeholders(changes.get("source", "s3://{bucket}/train.jsonl")),
                    "format": "messages",
                },
            ]},
            "training": {
                "maxSteps": changes.get("steps", 4), "batchSize": 2, "gradientAccumulation": 1,
                "learningRate": 1e-3, "lora": {"rank": 4, "alpha": 8}, **changes.get("training", {}),
            },
            "output": {"uri": f"s3://{self.bucket}/out/{{name}}"},
            "storage": {
                "endpoint": changes.get("endpoint", self._cluster.s3.url),
                "credentialsSecretRef": {"name": changes.get("secret", SECRET)},
            },
            "compute": {
                "nodes": changes.get("nodes", 1), "gpusPerNode": 0, "scratch": {"size": "4Gi"},
                "sharding": changes.get("sharding", "none"),
                "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "4Gi"}},
                "terminationGracePeriodSeconds": 30,
            },
            "backoffLimit": changes.get("backoffLimit", 3),
        }  # fmt: skip
        return dump_object(API_VERSION, KIND, name, annotations=changes.get("annotations", {}), spec=spec)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self._cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin)

    def create_object(self, manifest: str) -> None:
        self.kubectl("create", "--filename=-", stdin=manifest)

    def start_run(self, name: str, **changes: Any) -> None:
        self.create_object(self.build_manifest(name, **changes))

    def get_object(self, kind: str, name: str) -> Manifest:
        return dict(json.loads(self.kubectl("get", kind, name, "--output=json")))

    def get_status(self, name: str) -> Manifest:
        return dict(self.get_object("ftj", name).get("status", {}))

    def wait_for(self, name: str, is_done: Callable[[Manifest], bool], seconds: int = 900) -> Manifest:
        """Return the status as soon as `is_done` is true for it. Fail if the run ends first, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not is_done(status := self.get_status(name)):
            assert time.monotonic() < deadline, f"{name} after {seconds} s: {status}"
            assert status.get("phase") not in TERMINAL_PHASES, f"{name} has ended: {status}"
            time.sleep(2)
        return status

    def wait_until_running(self, name: str) -> None:
        """Wait until the phase is Running."""
        self.wait_for(name, lambda status: status.get("phase") == "Running")

    def wait_until_finished(self, name: str) -> Manifest:
        """Wait until the run is complete or failed. Return its status."""
        return self.wait_for(name, lambda status: status.get("phase") in TERMINAL_PHASES)

    def list_pods(self, name: str, extra_selector: str = "") -> list[str]:
        """Return the names of the run's pods, the oldest first."""
        selector = f"--selector=finetune.dev/job={name}{extra_selector}"
        return self.kubectl("get", "pods", selector, "--sort-by=.metadata.creationTimestamp", "--output=name").split()

    def wait_until_deleted(self, name: str, seconds: int = 180) -> None:
        """Wait until the Job and the pods of a deleted run no longer exist."""
        deadline = time.monotonic() + seconds
        while self.list_pods(name) or self.kubectl("get", "job", name, "--ignore-not-found", "--output=name"):
            assert time.monotonic() < deadline, f"Job and pods of {name} are still there after {seconds} s"
            time.sleep(2)

    def list_keys(self, prefix: str) -> set[str]:
        """Return the keys below a prefix of the bucket, without the prefix."""
        objects = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        return {item["Key"].removeprefix(prefix) for item in objects}

    def read_object(self, key: str) -> bytes:
        return self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()


def dump_object(
    api_version: str,
    kind: str,
    name: str,
    *,
    labels: Manifest | None = None,
    annotations: Manifest | None = None,
    **fields: Any,
) -> str:
    metadata = {"name": name, "labels": labels or {}, "annotations": annotations or {}}
    return json.dumps({"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields})


def _build_bucket_objects() -> dict[str, bytes]:
    valid_lines = [json.dumps(row) for row in ROWS]
    return {
        "train.jsonl": "\n".join(valid_lines).encode(),
        "other.jsonl": "\n".join(json.dumps(row) for row in UNSUPPORTED_ROWS).encode(),
        "broken.jsonl": "\n".join([*valid_lines[:2], '{"messages": [', *valid_lines[3:]]).encode(),
        "empty.jsonl": b"\n\n",
    }


def find_condition(status: Manifest, condition_type: str) -> Manifest:
    match: Manifest = next((candidate for candidate in status["conditions"] if candidate["type"] == condition_type), {})
    return match


@contextmanager
def open_cluster_harness(cluster: "Cluster", model: Path) -> Iterator[ClusterHarness]:
    """Yield a harness that is set up, and delete its namespace at the end."""
    credentials = cluster.s3
    s3 = boto3.client(
        "s3", endpoint_url=credentials.url, region_name=credentials.region,
        aws_access_key_id=credentials.access_key, aws_secret_access_key=credentials.secret_key,
        config=Config(proxies={}),
    )  # fmt: skip
    harness = ClusterHarness(cluster, s3)
    harness.set_up(model)
    yield harness
    harness.tear_down()
