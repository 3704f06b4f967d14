"""The whole flow: real images, a real kubelet, a real S3 server. All runs start at once; a test waits for its own."""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config

from finetune_operator.api import API_VERSION, KIND

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

    from local_cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

Manifest = dict[str, Any]
ROWS = [{"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"Gladly: {n}."}]}
        for n in range(16)]  # fmt: skip
OTHER_ROWS = [{"question": "What is it?", "answer": "Something else."}]
SECRET, WRONG_SECRET, UNKNOWN_SECRET = "s3-credentials", "wrong-secret-key", "unknown-key-id"
# What kopf itself would believe: "this object was handled, nothing is left to do".
FORGED = {
    "kopf.zalando.org/last-handled-configuration": json.dumps({"spec": {}}) + "\n",
    "kopf.zalando.org/finetunejob": json.dumps({"started": "2020-01-01T00:00:00Z", "success": True}),
    "finetune.dev/last-handled-configuration": json.dumps({"spec": {}}) + "\n",
}
INDEX = "batch.kubernetes.io/job-completion-index"
# What its memory limit would do; the process with number 1 only started them.
KILL_WORKERS = """
import os, pathlib
for each in pathlib.Path("/proc").glob("[0-9]*"):
    if int(each.name) not in (1, os.getpid()) and b"finetune_trainer" in (each / "cmdline").read_bytes():
        os.kill(int(each.name), 9)
"""


@dataclass(frozen=True)
class Bad:
    """A run that must fail: what is wrong in its spec, and what the status must say."""

    changes: dict[str, Any]
    reason: str
    words: tuple[str, ...]


BAD_RUNS = {
    "no-bucket": Bad({"source": "s3://no-such-bucket-{token}/train.jsonl"}, "DataNotFound",
                     ("no-such-bucket-{token}", "does not exist")),
    "no-key": Bad({"source": "s3://{bucket}/no-such-key.jsonl"}, "DataNotFound",
                  ("s3://{bucket}/no-such-key.jsonl", "no such object")),
    "no-column": Bad({"source": "s3://{bucket}/other.jsonl"}, "DataInvalid",
                     ("s3://{bucket}/other.jsonl line 1", "'messages'", "'question', 'answer'")),
    "no-rows": Bad({"source": "s3://{bucket}/empty.jsonl"}, "DatasetEmpty", ("no row",)),
    "no-json": Bad({"source": "s3://{bucket}/broken.jsonl"}, "DataInvalid",
                   ("s3://{bucket}/broken.jsonl line 3", "expected a JSON object")),
    "no-model": Bad({"model": "s3://{bucket}/no-such-model/"}, "ModelNotFound", ("s3://{bucket}/no-such-model/",)),
    "wrong-secret": Bad({"secret": WRONG_SECRET}, "AuthFailed", ("secret key", "credentials Secret")),
    "wrong-key-id": Bad({"secret": UNKNOWN_SECRET}, "AuthFailed", ("access key id", "credentials Secret")),
    "no-endpoint": Bad({"endpoint": "http://127.0.0.1:9", "backoffLimit": 0}, "StorageUnreachable",
                       ("http://127.0.0.1:9", "no answer")),
}  # fmt: skip


class Flow:
    """One namespace, one bucket, and the FineTuneJobs in it."""

    def __init__(self, cluster: "Cluster", s3: "S3Client") -> None:
        self.token = secrets.token_hex(4)
        self.namespace = self.bucket = f"flow-{self.token}"
        self.s3 = s3
        self._cluster = cluster

    def fill(self, model: Path) -> None:
        """Data and base model in the bucket; a namespace of the restricted kind; keys in Secrets."""
        self.s3.create_bucket(Bucket=self.bucket)
        for key, body in _objects().items():
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)
        for file in sorted(model.iterdir()):
            self.s3.upload_file(str(file), self.bucket, f"base/{file.name}")
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self._cluster.kubectl("create", "--filename=-", stdin=_dump("v1", "Namespace", self.namespace, labels=labels))
        keys = self._cluster.s3
        pairs = {
            SECRET: (keys.access_key, keys.secret_key),
            WRONG_SECRET: (keys.access_key, "wrong"),
            UNKNOWN_SECRET: ("unknown", keys.secret_key),
        }
        for name, (key_id, key) in pairs.items():
            self.create(
                _dump("v1", "Secret", name, stringData={"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": key})
            )

    def empty(self) -> None:
        self._cluster.kubectl("delete", "namespace", self.namespace, "--wait=false")

    def text(self, template: str) -> str:
        return template.replace("{bucket}", self.bucket).replace("{token}", self.token)

    def manifest(self, name: str, **changes: Any) -> str:
        """A FineTuneJob that succeeds, unless the changes say otherwise."""
        spec = {
            "model": {"uri": self.text(changes.get("model", "s3://{bucket}/base/")), "maxLength": 128},
            "dataset": {"sources": [
                {"uri": self.text(changes.get("source", "s3://{bucket}/train.jsonl")), "format": "messages"},
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
                "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "4Gi"}},
                "terminationGracePeriodSeconds": 30,
            },
            "backoffLimit": changes.get("backoffLimit", 3),
        }  # fmt: skip
        return _dump(API_VERSION, KIND, name, annotations=changes.get("annotations", {}), spec=spec)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self._cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin)

    def create(self, manifest: str) -> None:
        self.kubectl("create", "--filename=-", stdin=manifest)

    def start(self, name: str, **changes: Any) -> None:
        self.create(self.manifest(name, **changes))

    def get(self, kind: str, name: str) -> Manifest:
        return dict(json.loads(self.kubectl("get", kind, name, "--output=json")))

    def status(self, name: str) -> Manifest:
        return dict(self.get("ftj", name).get("status", {}))

    def wait(self, name: str, done: Callable[[Manifest], bool], seconds: int = 900) -> Manifest:
        """The status once `done` holds."""
        deadline = time.monotonic() + seconds
        while not done(status := self.status(name)):
            assert time.monotonic() < deadline, f"{name} after {seconds} s: {status}"
            time.sleep(2)
        return status

    def running(self, name: str) -> None:
        """Wait until the trainer runs."""
        self.wait(name, lambda status: status.get("phase") == "Running")

    def ended(self, name: str) -> Manifest:
        """The status of a run that is over."""
        return self.wait(name, lambda status: status.get("phase") in ("Complete", "Failed"))

    def pods(self, name: str, more: str = "") -> list[str]:
        """Oldest first."""
        selector = f"--selector=finetune.dev/job={name}{more}"
        return self.kubectl("get", "pods", selector, "--sort-by=.metadata.creationTimestamp", "--output=name").split()

    def gone(self, name: str, seconds: int = 180) -> None:
        """Wait until a deleted run's Job and pods are gone."""
        deadline = time.monotonic() + seconds
        while self.pods(name) or self.kubectl("get", "job", name, "--ignore-not-found", "--output=name"):
            assert time.monotonic() < deadline, f"Job and pods of {name} are still there after {seconds} s"
            time.sleep(2)

    def keys(self, prefix: str) -> set[str]:
        """What lies below a prefix of the bucket, without the prefix."""
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        return {each["Key"].removeprefix(prefix) for each in found}

    def read(self, key: str) -> bytes:
        return self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()


def _dump(
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


def _objects() -> dict[str, bytes]:
    good = [json.dumps(row) for row in ROWS]
    return {
        "train.jsonl": "\n".join(good).encode(),
        "other.jsonl": "\n".join(json.dumps(row) for row in OTHER_ROWS).encode(),
        "broken.jsonl": "\n".join([*good[:2], '{"messages": [', *good[3:]]).encode(),
        "empty.jsonl": b"\n\n",
    }


def condition(status: Manifest, kind: str) -> Manifest:
    found: Manifest = next((each for each in status["conditions"] if each["type"] == kind), {})
    return found


@pytest.fixture(scope="module")
def flow(cluster: "Cluster", operator: str, tiny_model: Path) -> Iterator[Flow]:
    """All runs, started."""
    assert operator
    keys = cluster.s3
    s3 = boto3.client(
        "s3", endpoint_url=keys.url, region_name=keys.region,
        aws_access_key_id=keys.access_key, aws_secret_access_key=keys.secret_key,
        config=Config(proxies={}),
    )  # fmt: skip
    started = Flow(cluster, s3)
    started.fill(tiny_model)
    started.create(_foreign_job("name-conflict"))
    for name in ("good", "twice", "name-conflict"):
        started.start(name)
    started.start("no-secret", secret="no-such-secret")
    started.start("forged", annotations=FORGED, source="s3://{bucket}/no-such-key.jsonl")
    for name, bad in BAD_RUNS.items():
        started.start(name, **bad.changes)
    yield started
    started.empty()


def _foreign_job(name: str) -> str:
    """Somebody else's; it is suspended, so it costs nothing."""
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}
    return _dump("batch/v1", "Job", name, spec={"suspend": True, "template": template})


def test_a_good_run_completes(flow: Flow) -> None:
    status = flow.ended("good")
    assert condition(status, "Complete")["status"] == "True", status
    assert condition(status, "Complete")["reason"] == "Completed"
    assert (status["attempts"], status["jobName"], status["backend"]) == (1, "good", "transformers")
    assert (status["progress"]["stage"], status["progress"]["percentage"]) == ("Done", 100)
    assert status["dataset"]["rows"] == status["dataset"]["kept"] == len(ROWS)
    assert status["startTime"] <= status["completionTime"]
    assert flow.kubectl("wait", "--for=condition=Complete", "ftj/good", "--timeout=5s")


def test_the_result_is_what_its_manifest_says(flow: Flow) -> None:
    status = flow.ended("good")
    assert status["result"]["adapterURI"] == f"s3://{flow.bucket}/out/good"
    content = flow.read("out/good/manifest.json")
    assert status["result"]["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    files = {each["path"]: each["sha256"] for each in json.loads(content)["files"]}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert {path: hashlib.sha256(flow.read(f"out/good/{path}")).hexdigest() for path in files} == files
    assert {key for key in flow.keys("out/good/") if not key.startswith(".")} == {*files, "manifest.json"}


def test_the_same_run_again_finds_its_result(flow: Flow) -> None:
    first = flow.ended("twice")["result"]
    flow.kubectl("delete", "ftj", "twice")
    flow.gone("twice")
    flow.start("twice")
    status = flow.ended("twice")
    assert condition(status, "Complete")["reason"] == "AlreadyComplete", status
    assert status["result"] == first


@pytest.mark.parametrize("name", BAD_RUNS)
def test_a_bad_run_says_why(flow: Flow, name: str) -> None:
    status, bad = flow.ended(name), BAD_RUNS[name]
    failed = condition(status, "Failed")
    assert (failed["status"], failed["reason"]) == ("True", bad.reason), status
    assert condition(status, "Stalled")["status"] == "True"
    for words in bad.words:
        assert flow.text(words) in failed["message"]


@pytest.mark.parametrize("name", BAD_RUNS)
def test_a_bad_run_is_plain_to_see(flow: Flow, name: str) -> None:
    flow.ended(name)
    line = flow.kubectl("get", "ftj", name, "--output=wide", "--no-headers")
    assert "Failed" in line
    assert BAD_RUNS[name].reason in line
    described = flow.kubectl("describe", "ftj", name)
    for words in BAD_RUNS[name].words:
        assert flow.text(words).split()[0] in described


@pytest.mark.parametrize("name", BAD_RUNS)
def test_a_bad_run_is_not_repeated_and_leaves_no_result(flow: Flow, name: str) -> None:
    assert flow.ended(name)["attempts"] == 1
    assert len(flow.pods(name)) == 1
    assert flow.keys(f"out/{name}/") <= {".claim.json"}


def test_a_missing_secret_is_waited_for(flow: Flow) -> None:
    def told(status: Manifest) -> bool:
        return any(each["reason"] == "ContainerConfigError" for each in status.get("conditions", []))

    status = flow.wait("no-secret", told)
    assert status["phase"] == "Pending"
    assert "no-such-secret" in condition(status, "Running")["message"]
    assert not condition(status, "Failed")


def test_a_job_of_that_name_is_never_touched(flow: Flow) -> None:
    status = flow.ended("name-conflict")
    assert condition(status, "Failed")["reason"] == "NameConflict"
    assert "name-conflict" in condition(status, "Failed")["message"]
    job = flow.get("job", "name-conflict")
    assert "ownerReferences" not in job["metadata"]
    assert job["spec"]["suspend"] is True
    assert not flow.pods("name-conflict")


def test_forged_annotations_change_nothing(flow: Flow) -> None:
    status = flow.ended("forged")
    assert condition(status, "Failed")["reason"] == "DataNotFound"
    metadata = flow.get("ftj", "forged")["metadata"]
    assert metadata["annotations"] == FORGED
    assert "finalizers" not in metadata


def test_the_operator_leaves_no_mark_on_objects(flow: Flow) -> None:
    flow.ended("good")
    metadata = flow.get("ftj", "good")["metadata"]
    assert not {"annotations", "finalizers"} & set(metadata)
    assert metadata["generation"] == 1


def test_a_deleted_run_takes_its_pods_along(flow: Flow) -> None:
    flow.start("deleted", steps=1_000_000)
    flow.running("deleted")
    flow.kubectl("delete", "ftj", "deleted")
    flow.gone("deleted")
    assert flow.keys("out/deleted/") <= {".claim.json"}


def test_pods_that_train_together_go_on_when_one_is_lost(flow: Flow) -> None:
    flow.start("together", nodes=2, steps=300, training={"checkpoints": {"everySteps": 20}})
    flow.wait("together", lambda status: status.get("lastCheckpointStep", 0) >= 20)
    lost = flow.pods("together", f",{INDEX}=1")[0]
    flow.kubectl("exec", lost, "--", "python", "-c", KILL_WORKERS)
    status = flow.ended("together")
    assert condition(status, "Complete")["status"] == "True", status
    assert (status["attempts"], status["progress"]["totalSteps"]) == (2, 300)
    job = flow.get("job", "together")["status"]
    ended = (job["succeeded"], job["completedIndexes"], job.get("failed"))
    assert ended == (2, "0,1", 1)  # the other one's end is free
    assert "going on from step" in flow.kubectl("logs", flow.pods("together", f",{INDEX}=0")[-1])
    assert json.loads(flow.read("out/together/manifest.json"))["metrics"]["steps"] == 300


def test_a_restarted_operator_goes_on(flow: Flow, cluster: "Cluster", operator: str) -> None:
    flow.start("restarted", steps=40)
    flow.running("restarted")
    uid = flow.get("job", "restarted")["metadata"]["uid"]
    system = ("--namespace", "finetune-system")
    cluster.kubectl(*system, "delete", "pod", f"--selector=app.kubernetes.io/name={operator}", "--wait=false")
    status = flow.ended("restarted")
    assert condition(status, "Complete")["status"] == "True", status
    assert status["attempts"] == 1
    assert flow.get("job", "restarted")["metadata"]["uid"] == uid
    assert len(flow.pods("restarted")) == 1
    cluster.kubectl(*system, "rollout", "status", f"deployment/{operator}", "--timeout=120s")


def test_events_say_what_happened(flow: Flow) -> None:
    flow.ended("no-key")
    events = flow.kubectl("events", "--for=finetunejob/no-key")
    assert "DataNotFound" in events
    assert "Warning" in events
