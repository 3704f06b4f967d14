"""Runs that also publish their merged model: what is there, and what is said, when that fails or is cut off."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.trainer.faulty_proxy import Fault
from tests.trainer.pods import Pods, make_pods

from finetune_trainer.contract import Outcome, Reason, Result

if TYPE_CHECKING:
    from tests.trainer.faulty_proxy import FaultyProxy
    from tests.trainer.forked_pods import Forks
    from tests.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(300)]

SHORT: dict[str, Any] = {"maxSteps": 4, "checkpoints": {"everySteps": 2}}
REFUSED_BY_TRANSFORMERS = b'{"temperature": 0.6, "top_p": 0.9}'


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: Forks) -> Callable[[str], Pods]:
    make = make_pods(s3, tmp_path, forks.build)

    def made(name: str) -> Pods:
        pods = make(name)
        pods.changes = {"output": {"merged": True}}
        return pods

    return made


def names(pods: Pods) -> set[str]:
    """What is at the output, by its name below it."""
    start = len(pods.output.removeprefix("s3://results/")) + 1
    return {key[start:] for key in pods.s3.keys(pods.output)}


def merged_names(pods: Pods) -> set[str]:
    return {name for name in names(pods) if name.startswith("merged/")}


def result(outcome: Outcome) -> Result:
    assert outcome.result
    return outcome.result


def check_whole(pods: Pods) -> None:
    """Adapter and merged model are there, each as its manifest says, and nothing else."""
    adapter = pods.s3.get(f"{pods.output}/manifest.json")
    manifest = json.loads(pods.s3.get(f"{pods.output}/merged/manifest.json"))
    assert not [file["path"] for file in json.loads(adapter)["files"] if file["path"].startswith("merged/")]
    assert manifest["adapterDigest"] == "sha256:" + hashlib.sha256(adapter).hexdigest()
    assert {"merged/" + file["path"] for file in manifest["files"]} | {"merged/manifest.json"} == merged_names(pods)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file["path"] for file in manifest["files"]}
    for file in manifest["files"]:
        content = pods.s3.get(f"{pods.output}/merged/{file['path']}")
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
    assert set(manifest["losses"]) == {"general text", "rows of the data"}
    assert not [name for name in names(pods) if name.startswith(".")]
    assert result(pods.outcome).merged_uri == f"{pods.output}/merged"


def test_run_publishes_adapter_then_merged_model(
    s3: S3Server, proxy: FaultyProxy, pods: Callable[[str], Pods], forks: Forks
) -> None:
    job = pods("job")
    s3.put("s3://models/resume/generation_config.json", REFUSED_BY_TRANSFORMERS)
    assert forks.run(job, **SHORT) is Reason.COMPLETED, job.log
    check_whole(job)
    assert job.outcome.message.endswith(f"the merged model is published at {job.output}/merged")
    published = json.loads(s3.get(f"{job.output}/merged/generation_config.json"))
    assert published.pop("eos_token_id")
    assert published == json.loads(REFUSED_BY_TRANSFORMERS)
    written = [path for path in proxy.written if f"/{job.folder.name}/" in path and "/." not in path]
    merged = [path for path in written if "/merged/" in path]
    assert written[: -len(merged)][-1].endswith("/job/manifest.json")
    assert written[-1].endswith("/merged/manifest.json")

    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE
    check_whole(job)


def test_run_whose_merged_model_cannot_be_uploaded_ends_completed_and_a_later_one_makes_it(
    proxy: FaultyProxy, pods: Callable[[str], Pods], forks: Forks
) -> None:
    job = pods("job")
    proxy.faults = [Fault("400", "PUT", "/merged/tokenizer.json", times=2)]
    assert forks.run(job, **SHORT) is Reason.COMPLETED, job.log
    assert f"published at {job.output}; " in job.outcome.message
    assert "the merged model is not published: s3://" in job.outcome.message
    assert "a run of the same config and output makes it from the adapter, without training" in job.outcome.message
    assert result(job.outcome).merged_uri is None
    assert merged_names(job) == set()
    assert not [name for name in names(job) if name.startswith(".")]

    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert "the merged model is not published: s3://" in job.outcome.message
    assert merged_names(job) == set()

    before = job.s3.get(f"{job.output}/manifest.json")
    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert job.outcome.message.endswith(f"the merged model is published at {job.output}/merged")
    assert "stage: Training" not in job.log
    assert job.s3.get(f"{job.output}/manifest.json") == before
    check_whole(job)


def test_run_given_foreign_files_below_merged_while_it_trains_leaves_them(
    proxy: FaultyProxy, pods: Callable[[str], Pods], forks: Forks
) -> None:
    job = pods("job")
    foreign = f"{job.output}/merged/config.json"

    def put(path: str) -> None:
        if path.endswith("/job/.upload.json"):
            job.s3.put(foreign, b"another's")

    proxy.after_write = put
    assert forks.run(job, **SHORT) is Reason.COMPLETED, job.log
    assert f"{job.output}/merged holds files that this run has not published" in job.outcome.message
    assert (merged_names(job), job.s3.get(foreign)) == ({"merged/config.json"}, b"another's")


@pytest.mark.parametrize(
    ("number", "last"),
    [
        (signal.SIGKILL, "/job/manifest.json"),
        (signal.SIGKILL, "/job/.merging.json"),
        (signal.SIGKILL, "/merged/model.safetensors"),
        (signal.SIGKILL, "/merged/manifest.json"),
        (signal.SIGTERM, "/merged/config.json"),
    ],
)
def test_run_stopped_while_it_publishes_the_merged_model_is_completed_by_the_next_attempt(
    proxy: FaultyProxy, pods: Callable[[str], Pods], forks: Forks, number: int, last: str
) -> None:
    job = pods("job")
    child = 0
    proxy.after_write = lambda path: os.kill(child, number) if path.endswith(last) else None
    child = forks.start(job, **SHORT)
    status = forks.wait()
    proxy.after_write = lambda path: None
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 143), job.log
    if number == signal.SIGKILL and last != "/job/manifest.json":  # the last word that the pod left
        assert job.outcome.reason is Reason.COMPLETED
        assert "the merged model is not published yet" in job.outcome.message
        assert result(job.outcome).adapter_uri == job.output

    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert "stage: Training" not in job.log
    check_whole(job)


def test_run_killed_twice_while_it_makes_the_merged_model_ends_with_its_adapter(
    proxy: FaultyProxy, pods: Callable[[str], Pods], forks: Forks
) -> None:
    job = pods("job")
    child = 0
    proxy.after_write = lambda path: os.kill(child, signal.SIGKILL) if path.endswith(".merging.json") else None
    for _ in range(2):
        child = forks.start(job, **SHORT)
        assert forks.wait() == -signal.SIGKILL, job.log
    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert "2 attempts were killed while they made it; raise the memory" in job.outcome.message
    assert merged_names(job) == set()

    proxy.after_write = lambda path: None
    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    check_whole(job)
