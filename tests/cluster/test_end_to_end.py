"""End-to-end tests from manifest to result. All runs start at once, and each test waits for one of them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.cluster.cluster_harness import (
    ROWS,
    UNKNOWN_SECRET,
    WRONG_SECRET,
    ClusterHarness,
    Manifest,
    dump_object,
    find_condition,
    open_cluster_harness,
)

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

# Annotations from which kopf would conclude that the object is handled completely.
FORGED = {
    "kopf.zalando.org/last-handled-configuration": json.dumps({"spec": {}}) + "\n",
    "kopf.zalando.org/finetunejob": json.dumps({"started": "2020-01-01T00:00:00Z", "success": True}),
    "finetune.dev/last-handled-configuration": json.dumps({"spec": {}}) + "\n",
}
INDEX = "batch.kubernetes.io/job-completion-index"
# Kill the workers, as their memory limit would. Process 1 only started them.
KILL_WORKERS = """
import os, pathlib
for each in pathlib.Path("/proc").glob("[0-9]*"):
    if int(each.name) not in (1, os.getpid()) and b"finetune_trainer" in (each / "cmdline").read_bytes():
        os.kill(int(each.name), 9)
"""


@dataclass(frozen=True)
class InvalidRun:
    """A run that must fail: the errors in its spec, and the expected reason and message."""

    changes: dict[str, Any]
    reason: str
    words: tuple[str, ...]


INVALID_RUNS = {
    "no-bucket": InvalidRun({"source": "s3://no-such-bucket-{token}/train.jsonl"}, "DataNotFound",
                     ("no-such-bucket-{token}", "does not exist")),
    "no-key": InvalidRun({"source": "s3://{bucket}/no-such-key.jsonl"}, "DataNotFound",
                  ("s3://{bucket}/no-such-key.jsonl", "no such object")),
    "no-column": InvalidRun({"source": "s3://{bucket}/other.jsonl"}, "DataInvalid",
                     ("s3://{bucket}/other.jsonl line 1", "'messages'", "'question', 'answer'")),
    "no-rows": InvalidRun({"source": "s3://{bucket}/empty.jsonl"}, "DatasetEmpty", ("no row",)),
    "no-json": InvalidRun({"source": "s3://{bucket}/broken.jsonl"}, "DataInvalid",
                   ("s3://{bucket}/broken.jsonl line 3", "expected a JSON object")),
    "no-model": InvalidRun({"model": "s3://{bucket}/no-such-model/"}, "ModelNotFound", ("s3://{bucket}/no-such-model/",)),
    "wrong-secret": InvalidRun({"secret": WRONG_SECRET}, "AuthFailed", ("secret key", "credentials Secret")),
    "wrong-key-id": InvalidRun({"secret": UNKNOWN_SECRET}, "AuthFailed", ("access key id", "credentials Secret")),
    "no-endpoint": InvalidRun({"endpoint": "http://127.0.0.1:9", "backoffLimit": 0}, "StorageUnreachable",
                       ("http://127.0.0.1:9", "no response")),
}  # fmt: skip


@pytest.fixture(scope="module")
def flow(cluster: "Cluster", operator: str, tiny_model: Path) -> Iterator[ClusterHarness]:
    """Yield the harness after starting all runs."""
    assert operator
    with open_cluster_harness(cluster, tiny_model) as started:
        started.create_object(_build_foreign_job("name-conflict"))
        for name in ("good", "twice", "name-conflict"):
            started.start_run(name)
        started.start_run("no-secret", secret="no-such-secret")
        started.start_run("forged", annotations=FORGED, source="s3://{bucket}/no-such-key.jsonl")
        for name, bad in INVALID_RUNS.items():
            started.start_run(name, **bad.changes)
        yield started


def _build_foreign_job(name: str) -> str:
    """Return a Job of another owner. It is suspended, so it needs no resources."""
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}
    return dump_object("batch/v1", "Job", name, spec={"suspend": True, "template": template})


def test_run_valid_completes(flow: ClusterHarness) -> None:
    status = flow.wait_until_finished("good")
    assert find_condition(status, "Complete")["status"] == "True", status
    assert find_condition(status, "Complete")["reason"] == "Completed"
    assert (status["attempts"], status["jobName"], status["backend"]) == (1, "good", "transformers")
    assert (status["progress"]["stage"], status["progress"]["percentage"]) == ("Done", 100)
    assert status["dataset"]["rows"] == status["dataset"]["kept"] == len(ROWS)
    assert status["startTime"] <= status["completionTime"]
    assert flow.kubectl("wait", "--for=condition=Complete", "ftj/good", "--timeout=5s")


def test_run_result_matches_manifest_digests(flow: ClusterHarness) -> None:
    status = flow.wait_until_finished("good")
    assert status["result"]["adapterURI"] == f"s3://{flow.bucket}/out/good"
    content = flow.read_object("out/good/manifest.json")
    assert status["result"]["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    files = {file["path"]: file["sha256"] for file in json.loads(content)["files"]}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert {path: hashlib.sha256(flow.read_object(f"out/good/{path}")).hexdigest() for path in files} == files
    assert {key for key in flow.list_keys("out/good/") if not key.startswith(".")} == {*files, "manifest.json"}


def test_run_repeated_finds_existing_result(flow: ClusterHarness) -> None:
    first = flow.wait_until_finished("twice")["result"]
    flow.kubectl("delete", "ftj", "twice")
    flow.wait_until_deleted("twice")
    flow.start_run("twice")
    status = flow.wait_until_finished("twice")
    assert find_condition(status, "Complete")["reason"] == "AlreadyComplete", status
    assert status["result"] == first


@pytest.mark.parametrize("name", INVALID_RUNS)
def test_run_invalid_fails_with_reason_and_message(flow: ClusterHarness, name: str) -> None:
    status, bad = flow.wait_until_finished(name), INVALID_RUNS[name]
    failed = find_condition(status, "Failed")
    assert (failed["status"], failed["reason"]) == ("True", bad.reason), status
    assert find_condition(status, "Stalled")["status"] == "True"
    for words in bad.words:
        assert flow.fill_placeholders(words) in failed["message"]


@pytest.mark.parametrize("name", INVALID_RUNS)
def test_run_invalid_is_shown_by_kubectl(flow: ClusterHarness, name: str) -> None:
    flow.wait_until_finished(name)
    line = flow.kubectl("get", "ftj", name, "--output=wide", "--no-headers")
    assert "Failed" in line
    assert INVALID_RUNS[name].reason in line
    described = flow.kubectl("describe", "ftj", name)
    for words in INVALID_RUNS[name].words:
        assert flow.fill_placeholders(words).split()[0] in described


@pytest.mark.parametrize("name", INVALID_RUNS)
def test_run_invalid_is_not_retried_and_leaves_no_result(flow: ClusterHarness, name: str) -> None:
    assert flow.wait_until_finished(name)["attempts"] == 1
    assert len(flow.list_pods(name)) == 1
    assert not [key for key in flow.list_keys(f"out/{name}/") if not key.startswith(".")]


def test_run_secret_missing_stays_pending(flow: ClusterHarness) -> None:
    def lacks_secret(status: Manifest) -> bool:
        return any(condition["reason"] == "SecretNotFound" for condition in status.get("conditions", []))

    status = flow.wait_for("no-secret", lacks_secret)
    assert status["phase"] == "Pending"
    assert "no-such-secret" in find_condition(status, "Running")["message"]
    assert not find_condition(status, "Failed")


def test_run_foreign_job_is_name_conflict(flow: ClusterHarness) -> None:
    status = flow.wait_until_finished("name-conflict")
    assert find_condition(status, "Failed")["reason"] == "NameConflict"
    assert "name-conflict" in find_condition(status, "Failed")["message"]
    job = flow.get_object("job", "name-conflict")
    assert "ownerReferences" not in job["metadata"]
    assert job["spec"]["suspend"] is True
    assert not flow.list_pods("name-conflict")


def test_run_forged_annotations_are_ignored(flow: ClusterHarness) -> None:
    status = flow.wait_until_finished("forged")
    assert find_condition(status, "Failed")["reason"] == "DataNotFound"
    metadata = flow.get_object("ftj", "forged")["metadata"]
    assert metadata["annotations"] == FORGED
    assert "finalizers" not in metadata


def test_operator_adds_no_annotations_or_finalizers(flow: ClusterHarness) -> None:
    flow.wait_until_finished("good")
    metadata = flow.get_object("ftj", "good")["metadata"]
    assert not {"annotations", "finalizers"} & set(metadata)
    assert metadata["generation"] == 1


def test_run_deleted_removes_job_and_pods(flow: ClusterHarness) -> None:
    flow.start_run("deleted", steps=1_000_000)
    flow.wait_until_running("deleted")
    flow.kubectl("delete", "ftj", "deleted")
    flow.wait_until_deleted("deleted")
    assert flow.list_keys("out/deleted/") <= {".claim.json"}


def test_run_multi_node_sharded_worker_killed_resumes_from_checkpoint(flow: ClusterHarness) -> None:
    training = {"checkpoints": {"everySteps": 20}}
    flow.start_run("together", nodes=2, sharding="full", steps=300, training=training)
    flow.wait_for("together", lambda status: status.get("lastCheckpointStep", 0) >= 20)
    worker_pod = flow.list_pods("together", f",{INDEX}=1")[0]
    flow.kubectl("exec", worker_pod, "--", "python", "-c", KILL_WORKERS)
    status = flow.wait_until_finished("together")
    assert find_condition(status, "Complete")["status"] == "True", status
    assert (status["attempts"], status["progress"]["totalSteps"]) == (2, 300)
    job = flow.get_object("job", "together")["status"]
    job_counts = (job["succeeded"], job["completedIndexes"], job.get("failed"))
    assert job_counts == (2, "0,1", 1)  # the end of the other pod does not count as a failure
    assert "resuming from step" in flow.kubectl("logs", flow.list_pods("together", f",{INDEX}=0")[-1])
    assert json.loads(flow.read_object("out/together/manifest.json"))["metrics"]["steps"] == 300


def test_operator_restarted_keeps_running_run(flow: ClusterHarness, cluster: "Cluster", operator: str) -> None:
    flow.start_run("restarted", steps=40)
    flow.wait_until_running("restarted")
    uid = flow.get_object("job", "restarted")["metadata"]["uid"]
    system = ("--namespace", "finetune-system")
    cluster.kubectl(*system, "delete", "pod", f"--selector=app.kubernetes.io/name={operator}", "--wait=false")
    status = flow.wait_until_finished("restarted")
    assert find_condition(status, "Complete")["status"] == "True", status
    assert status["attempts"] == 1
    assert flow.get_object("job", "restarted")["metadata"]["uid"] == uid
    assert len(flow.list_pods("restarted")) == 1
    cluster.kubectl(*system, "rollout", "status", f"deployment/{operator}", "--timeout=120s")


def test_run_failure_creates_warning_event(flow: ClusterHarness) -> None:
    flow.wait_until_finished("no-key")
    events = flow.kubectl("events", "--for=finetunejob/no-key")
    assert "DataNotFound" in events
    assert "Warning" in events
