"""The whole flow, each run from manifest to result. All start at once; a test waits for its own."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cluster.flows import ROWS, UNKNOWN_SECRET, WRONG_SECRET, Flow, Manifest, condition, dump, new_flow

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

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


@pytest.fixture(scope="module")
def flow(cluster: "Cluster", operator: str, tiny_model: Path) -> Iterator[Flow]:
    """All runs, started."""
    assert operator
    with new_flow(cluster, tiny_model) as started:
        started.create(_foreign_job("name-conflict"))
        for name in ("good", "twice", "name-conflict"):
            started.start(name)
        started.start("no-secret", secret="no-such-secret")
        started.start("forged", annotations=FORGED, source="s3://{bucket}/no-such-key.jsonl")
        for name, bad in BAD_RUNS.items():
            started.start(name, **bad.changes)
        yield started


def _foreign_job(name: str) -> str:
    """Somebody else's; it is suspended, so it costs nothing."""
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}
    return dump("batch/v1", "Job", name, spec={"suspend": True, "template": template})


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
