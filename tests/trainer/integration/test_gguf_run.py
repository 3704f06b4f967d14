"""Tests of runs that publish GGUF files: after the training, and later for a published result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.faulty_proxy import Fault
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.cli.export import ExportRequest, export_result
from finetune_trainer.contract import LLAMA_CPP_ENV, Reason
from finetune_trainer.errors import TrainerError
from local_cluster.converters import ensure_converters

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(300)]

SHORT: dict[str, Any] = {"maxSteps": 2}


@pytest.fixture
def job(s3: S3Server, tmp_path: Path, forks: ForkServer, monkeypatch: pytest.MonkeyPatch) -> TrainerRun:
    monkeypatch.setenv(LLAMA_CPP_ENV, str(ensure_converters()))
    return make_run_factory(s3, tmp_path, forks.build_model)("job")


def list_gguf(job: TrainerRun) -> set[str]:
    start = len(job.output.removeprefix("s3://results/")) + 1
    return {key[start:] for key in job.s3.list_keys(job.output) if "/gguf/" in key}


def assert_gguf_complete(job: TrainerRun) -> None:
    manifest = json.loads(job.s3.get(f"{job.output}/gguf/manifest.json"))
    adapter = job.s3.get(f"{job.output}/manifest.json")
    assert manifest["adapterDigest"] == "sha256:" + hashlib.sha256(adapter).hexdigest()
    assert (manifest["type"], manifest["converter"]) == ("f16", "llama-cpp-python 0.3.36")
    assert {file["path"] for file in manifest["files"]} == {"Modelfile", "adapter-f16.gguf"}
    assert list_gguf(job) == {"gguf/manifest.json", *("gguf/" + file["path"] for file in manifest["files"])}
    for file in manifest["files"]:
        content = job.s3.get(f"{job.output}/gguf/{file['path']}")
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])


def get_gguf_uri(job: TrainerRun) -> str | None:
    assert job.outcome.result
    return job.outcome.result.gguf_uri


def test_gguf_run_failed_upload_is_repaired_by_later_run(
    proxy: FaultyProxy, job: TrainerRun, forks: ForkServer
) -> None:
    assert forks.run(job, **SHORT) is Reason.COMPLETED, job.log
    before = job.s3.get(f"{job.output}/manifest.json")
    assert list_gguf(job) == set()

    job.changes = {"output": {"uri": job.output, "gguf": "f16"}}
    proxy.faults = [Fault("400", "PUT", "/gguf/adapter-f16.gguf", times=1)]
    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert "the GGUF files are not published: s3://" in job.outcome.message
    assert (get_gguf_uri(job), list_gguf(job)) == (None, set())

    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert job.outcome.message.endswith(f"the GGUF files are published at {job.output}/gguf")
    assert get_gguf_uri(job) == f"{job.output}/gguf"
    assert "stage: Training" not in job.log
    assert "gguf: " in job.log
    assert_gguf_complete(job)
    assert job.s3.get(f"{job.output}/manifest.json") == before


def test_gguf_run_publishes_files_after_adapter(job: TrainerRun, forks: ForkServer, tmp_path: Path) -> None:
    job.changes = {"output": {"uri": job.output, "gguf": "f16", "merged": True}}
    assert forks.run(job, **SHORT) is Reason.COMPLETED, job.log
    assert_gguf_complete(job)
    # The converter does not know the tokenizer of the tiny model, which only the merged model has.
    assert ", without model-f16.gguf: llama-cpp-python 0.3.36 does not know the tokenizer" in job.outcome.message
    assert not [key for key in job.s3.list_keys(job.output) if "/." in key]
    assert forks.run(job, **SHORT) is Reason.ALREADY_COMPLETE, job.log
    assert get_gguf_uri(job) == f"{job.output}/gguf"
    assert "gguf: " not in job.log

    request = ExportRequest(job.output, "f16", "adapter", tmp_path / "files", None, job.config().storage)
    assert export_result(request, tmp_path) == str(tmp_path / "files")
    for name in ("Modelfile", "adapter-f16.gguf"):
        assert (tmp_path / "files" / name).read_bytes() == job.s3.get(f"{job.output}/gguf/{name}")

    with pytest.raises(TrainerError, match="contains GGUF files of type f16; they are never overwritten") as error:
        export_result(ExportRequest(job.output, "q8_0", "all", None, None, job.config().storage), tmp_path)
    assert error.value.reason is Reason.OUTPUT_EXISTS
    job.s3.put(f"{job.output}/adapter_config.json", b"{}")
    with pytest.raises(TrainerError, match=r"does not match manifest.json") as error:
        export_result(ExportRequest(job.output, "f16", "all", tmp_path / "more", None, job.config().storage), tmp_path)
    assert error.value.reason is Reason.STORAGE_CORRUPT
