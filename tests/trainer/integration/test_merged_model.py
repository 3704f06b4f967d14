"""Tests of runs that publish a merged model: the published files and messages, also after a fault or a kill."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.faulty_proxy import Fault
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import Outcome, Reason, Result

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(300)]

SHORT: dict[str, Any] = {"maxSteps": 4, "checkpoints": {"everySteps": 2}}
REFUSED_BY_TRANSFORMERS = b'{"temperature": 0.6, "top_p": 0.9}'


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], TrainerRun]:
    make = make_run_factory(s3, tmp_path, forks.build_model)

    def make_job(name: str) -> TrainerRun:
        pods = make(name)
        pods.changes = {"output": {"merged": True}}
        return pods

    return make_job


def list_output(pods: TrainerRun) -> set[str]:
    """Return the names of the objects at the output, relative to it."""
    start = len(pods.output.removeprefix("s3://results/")) + 1
    return {key[start:] for key in pods.s3.list_keys(pods.output)}


def list_merged_output(pods: TrainerRun) -> set[str]:
    return {name for name in list_output(pods) if name.startswith("merged/")}


def get_result(outcome: Outcome) -> Result:
    assert outcome.result
    return outcome.result


def assert_merged_complete(pods: TrainerRun) -> None:
    """Assert that adapter and merged model match their manifests, and that there are no other objects."""
    adapter = pods.s3.get(f"{pods.output}/manifest.json")
    manifest = json.loads(pods.s3.get(f"{pods.output}/merged/manifest.json"))
    assert not [file["path"] for file in json.loads(adapter)["files"] if file["path"].startswith("merged/")]
    assert manifest["adapterDigest"] == "sha256:" + hashlib.sha256(adapter).hexdigest()
    assert {"merged/" + file["path"] for file in manifest["files"]} | {"merged/manifest.json"} == list_merged_output(
        pods
    )
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file["path"] for file in manifest["files"]}
    for file in manifest["files"]:
        content = pods.s3.get(f"{pods.output}/merged/{file['path']}")
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
    assert set(manifest["losses"]) == {"general text", "rows of the data"}
    assert not [name for name in list_output(pods) if name.startswith(".")]
    assert get_result(pods.outcome).merged_uri == f"{pods.output}/merged"


def test_merged_run_publishes_adapter_first(
    s3: S3Server, proxy: FaultyProxy, pods: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    job = pods("job")
    s3.put("s3://models/resume/generation_config.json", REFUSED_BY_TRANSFORMERS)
    assert forks.run(job, **SHORT) is Reason.COMPLETED, job.log
    assert_merged_complete(job)
    assert job.outcome.message.endswith(f"the merged model is published at {job.output}/merged")
    published = json.loads(s3.get(f"{job.output}/merged/generation_config.json"))
    assert published.pop("eos_token_id")
    assert published == json.loads(REFUSED_BY_TRANSFORMERS)
    written = [path for path in proxy.written_paths if f"/{job.folder.name}/" in path and "/." not in path]
    merged = [path for path in written if "/merged/" in path]
    assert written[: -len(merged)][-1].endswith("/job/manifest.json")
    assert written[-1].endswith("/merged/manifest.json")

    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE
    assert_merged_complete(job)


def test_merged_run_failed_upload_is_repaired_by_later_run(
    proxy: FaultyProxy, pods: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    job = pods("job")
    proxy.faults = [Fault("400", "PUT", "/merged/tokenizer.json", times=2)]
    assert forks.run(job, **SHORT) is Reason.COMPLETED, job.log
    assert f"published at {job.output}; " in job.outcome.message
    assert "the merged model is not published: s3://" in job.outcome.message
    assert "a run with the same config and output creates it from the adapter, without training" in job.outcome.message
    assert get_result(job.outcome).merged_uri is None
    assert list_merged_output(job) == set()
    assert not [name for name in list_output(job) if name.startswith(".")]

    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert "the merged model is not published: s3://" in job.outcome.message
    assert list_merged_output(job) == set()

    before = job.s3.get(f"{job.output}/manifest.json")
    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert job.outcome.message.endswith(f"the merged model is published at {job.output}/merged")
    assert "stage: Training" not in job.log
    assert job.s3.get(f"{job.output}/manifest.json") == before
    assert_merged_complete(job)


def test_merged_run_foreign_files_are_kept(
    proxy: FaultyProxy, pods: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    job = pods("job")
    foreign = f"{job.output}/merged/config.json"

    def put(path: str) -> None:
        if path.endswith("/job/.upload.json"):
            job.s3.put(foreign, b"another's")

    proxy.on_write = put
    assert forks.run(job, **SHORT) is Reason.COMPLETED, job.log
    assert f"{job.output}/merged contains files that this run has not published" in job.outcome.message
    assert (list_merged_output(job), job.s3.get(foreign)) == ({"merged/config.json"}, b"another's")


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
def test_merged_run_stopped_in_upload_is_completed_later(
    proxy: FaultyProxy, pods: Callable[[str], TrainerRun], forks: ForkServer, number: int, last: str
) -> None:
    job = pods("job")
    child = 0
    proxy.on_write = lambda path: os.kill(child, number) if path.endswith(last) else None
    child = forks.start(job, **SHORT)
    status = forks.wait(child)
    proxy.on_write = lambda path: None
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 143), job.log
    if number == signal.SIGKILL and last != "/job/manifest.json":  # the last record of the killed pod
        assert job.outcome.reason is Reason.COMPLETED
        assert "the merged model is not published yet" in job.outcome.message
        assert get_result(job.outcome).adapter_uri == job.output

    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert "stage: Training" not in job.log
    assert_merged_complete(job)


def test_merged_run_killed_twice_in_merge_keeps_adapter(
    proxy: FaultyProxy, pods: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    job = pods("job")
    child = 0
    proxy.on_write = lambda path: os.kill(child, signal.SIGKILL) if path.endswith(".merging.json") else None
    for _ in range(2):
        child = forks.start(job, **SHORT)
        assert forks.wait(child) == -signal.SIGKILL, job.log
    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert "2 attempts were killed while they merged; increase the memory" in job.outcome.message
    assert list_merged_output(job) == set()

    proxy.on_write = lambda path: None
    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert_merged_complete(job)
