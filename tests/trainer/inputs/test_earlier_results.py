"""The published results that baselines belong to: their digests, their files and their validation rows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.run_records import make_manifest
from tests.support.trainer.untrained_runs import build_config, prefix

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import resolve
from finetune_trainer.inputs.resolve import START_ADAPTER, DownloadedInputs
from finetune_trainer.records.manifest import FileRecord, compute_digest
from finetune_trainer.storage import S3

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

__all__ = ["prefix"]
pytestmark = pytest.mark.s3

FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"weights",
    "evaluation.jsonl": b'{"row": "sha256:0"}\n',
}
VALIDATION_DIGEST = "sha256:" + "a" * 64


def put_result(s3: S3Server, uri: str) -> str:
    """Upload an invented result. Return its digest."""
    files = [
        FileRecord(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in FILES.items()
    ]
    manifest = make_manifest(files=files, validation_digest=VALIDATION_DIGEST).to_bytes()
    for name, content in {**FILES, "manifest.json": manifest}.items():
        s3.put(f"{uri}/{name}", content)
    return compute_digest(manifest)


def download(s3: S3Server, output: str, folder: Path, baseline: dict[str, Any], **changes: Any) -> DownloadedInputs:
    config = build_config(s3, output, evaluation={"baselines": [{"name": "may", **baseline}]}, **changes)
    resolved = resolve.resolve_inputs(config, S3(config.storage))
    return resolve.start_download(resolved, folder).result()


def test_result_of_a_baseline_is_fetched(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    uri = f"{prefix}/may"
    digest = put_result(s3, uri)
    model = {"uri": "s3://models/tiny", "adapterURI": uri}
    downloaded = download(s3, prefix, tmp_path, {"adapterURI": uri, "digest": digest}, model=model)
    assert downloaded.results.keys() == {"may", START_ADAPTER}
    result = downloaded.results["may"]
    assert (result.digest, result.validation_digest) == (digest, VALIDATION_DIGEST)
    assert result.row_scores
    assert result.row_scores.read_bytes() == FILES["evaluation.jsonl"]
    names = {Path(file.uri).name for file in downloaded.adapter_files}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}, "only the adapter is an input of the run"


@pytest.mark.parametrize("content", [b"changed", None])
def test_result_with_other_row_scores_has_none(
    s3: S3Server, prefix: str, tmp_path: Path, content: bytes | None
) -> None:
    uri = f"{prefix}/may"
    digest = put_result(s3, uri)
    s3.client.delete_object(Bucket="results", Key=f"{uri.removeprefix('s3://results/')}/evaluation.jsonl")
    if content:
        s3.put(f"{uri}/evaluation.jsonl", content)
    result = download(s3, prefix, tmp_path, {"adapterURI": uri, "digest": digest}).results["may"]
    assert (result.digest, result.row_scores) == (digest, None)


def test_result_whose_adapter_was_changed_is_refused_if_its_digest_is_required(
    s3: S3Server, prefix: str, tmp_path: Path
) -> None:
    uri = f"{prefix}/may"
    digest = put_result(s3, uri)
    s3.put(f"{uri}/adapter_model.safetensors", b"other")
    with pytest.raises(TrainerError, match=r"may/adapter_model\.safetensors does not match manifest\.json") as error:
        download(s3, prefix, tmp_path, {"adapterURI": uri, "digest": digest})
    assert error.value.reason is Reason.STORAGE_CORRUPT
    downloaded = download(s3, prefix, tmp_path, {"adapterURI": uri})
    assert (downloaded.results, list(downloaded.baselines)) == ({}, ["may"])


def test_baseline_with_a_foreign_manifest_has_no_result(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    uri = f"{prefix}/may"
    put_result(s3, uri)
    s3.put(f"{uri}/manifest.json", b'{"kind": "Other"}')
    assert download(s3, prefix, tmp_path, {"adapterURI": uri}).results == {}
