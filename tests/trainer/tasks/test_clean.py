"""Cleaning of outputs: which checkpoints are deleted, and what happens when something fails or runs meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.faulty_proxy import Fault, FaultyProxy

from finetune_trainer.checkpoints.layout import CHECKPOINT_MANIFEST_NAME
from finetune_trainer.contract import Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.output_lock import LockTiming, OutputLock
from finetune_trainer.storage import S3, Location, bulk_delete
from finetune_trainer.tasks.clean import clean_output, find_garbage, find_outputs
from finetune_trainer.telemetry.progress import ProgressReporter

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

pytestmark = pytest.mark.s3

WEEK = 7 * 24 * 3600.0
OLD, FRESH = "a" * 64, "b" * 64
FILES = ("adapter_model.safetensors", "optimizer.pt", "rng_state_3.pth", "counts.json", CHECKPOINT_MANIFEST_NAME)
TIMING = LockTiming(heartbeat_seconds=0.2, stale_seconds=1, poll_seconds=0.1)


@pytest.fixture
def output(tmp_path: Path) -> Location:
    return Location("results", f"{tmp_path.name}/")


def put_checkpoints(s3: S3Server, output: Location, digest: str, age_seconds: float, *steps: int) -> list[str]:
    """Store checkpoints of this age. Return their keys."""
    keys = [f"{output.key}.checkpoints/{digest}/step-{step}/{name}" for step in steps for name in FILES]
    for key in keys:
        put_aged(s3, output.bucket, key, age_seconds)
    return keys


def put_aged(s3: S3Server, bucket: str, key: str, age_seconds: float) -> None:
    s3.put(f"s3://{bucket}/{key}", b"content")
    written_at = time.time() - age_seconds
    os.utime(s3.root / bucket / key, (written_at, written_at))  # the server stores objects as files


def list_keys(s3: S3Server, output: Location) -> set[str]:
    return set(s3.list_keys(str(output)))


def test_clean_output_deletes_old_checkpoints_and_nothing_else(s3: S3Server, output: Location) -> None:
    old_keys = put_checkpoints(s3, output, OLD, 2 * WEEK, 10, 20)
    kept_keys = set(put_checkpoints(s3, output, FRESH, WEEK / 2, 10))
    foreign_keys = (
        "adapter_model.safetensors",
        "manifest.json",
        ".failed/run-1/run.log",
        ".rejected/adapter_model.safetensors",
        ".checkpoints/notes.txt",
        ".checkpoints/backup/step-1/optimizer.pt",
        f".checkpoints/{OLD}/step-10/notes.txt",
        f".checkpoints/{OLD}/optimizer.pt",
        f"other/.checkpoints/{OLD}/step-1/optimizer.pt",
    )
    for name in foreign_keys:
        put_aged(s3, output.bucket, output.key + name, 3 * WEEK)
        kept_keys.add(output.key + name)
    report = clean_output(S3(s3.storage), output, WEEK)
    assert list_keys(s3, output) == kept_keys
    assert (report.objects, report.bytes, report.kept) == (len(old_keys), 7 * len(old_keys), 1)
    assert clean_output(S3(s3.storage), output, WEEK).objects == 0  # and again


def test_clean_output_one_fresh_object_keeps_all_checkpoints_of_its_configuration(
    s3: S3Server, output: Location
) -> None:
    keys = put_checkpoints(s3, output, OLD, 2 * WEEK, 10, 20)
    put_aged(s3, output.bucket, keys[0], 60)
    assert clean_output(S3(s3.storage), output, WEEK).objects == 0
    assert list_keys(s3, output) == set(keys)


def test_clean_output_beside_sibling_with_same_beginning_leaves_it(s3: S3Server, output: Location) -> None:
    put_checkpoints(s3, output, OLD, 2 * WEEK, 10)
    sibling = Location(output.bucket, output.key.rstrip("/") + "-2/")
    sibling_keys = set(put_checkpoints(s3, sibling, OLD, 2 * WEEK, 10))
    clean_output(S3(s3.storage), output, WEEK)
    assert list_keys(s3, sibling) == sibling_keys
    assert list_keys(s3, output) == set()


def test_clean_output_held_by_run_deletes_nothing(s3: S3Server, output: Location) -> None:
    keys = put_checkpoints(s3, output, OLD, 2 * WEEK, 10)
    lock = OutputLock(S3(s3.storage), output, "run-1", "sha256:x", TIMING)
    lock.acquire(ProgressReporter())
    with pytest.raises(TrainerError) as raised:
        clean_output(S3(s3.storage), output, WEEK, TIMING)
    lock.release()
    assert raised.value.reason is Reason.OUTPUT_BUSY
    assert list_keys(s3, output) == set(keys)


def test_clean_output_with_stale_lock_of_killed_run_deletes_both(s3: S3Server, output: Location) -> None:
    put_checkpoints(s3, output, OLD, 2 * WEEK, 10)
    s3.put(f"{output}.claim.json", b'{"runId": "killed", "holder": "x", "host": "node-1"}')
    clean_output(S3(s3.storage), output, WEEK, TIMING)
    assert list_keys(s3, output) == set()


def test_clean_output_while_deleting_makes_a_starting_run_wait(
    s3: S3Server, output: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_checkpoints(s3, output, OLD, 2 * WEEK, 10)
    holders: list[bytes] = []
    delete = bulk_delete.BulkDeleter.delete

    def record_lock(deleter: bulk_delete.BulkDeleter, keys: object) -> None:
        holders.append(s3.get(f"{output}.claim.json"))
        delete(deleter, keys)  # type: ignore[arg-type]

    monkeypatch.setattr(bulk_delete.BulkDeleter, "delete", record_lock)
    clean_output(S3(s3.storage), output, WEEK)
    assert holders
    assert all(b'"runId":"clean-' in holder for holder in holders)


def test_clean_output_interrupted_leaves_no_checkpoint_that_looks_complete(
    s3: S3Server, output: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = put_checkpoints(s3, output, OLD, 2 * WEEK, 10, 20)
    monkeypatch.setattr(bulk_delete, "_MAX_KEYS", 2)
    delete_batch = bulk_delete.BulkDeleter._delete_batch
    calls: list[int] = []

    def crash_later(deleter: bulk_delete.BulkDeleter, batch: list[str]) -> bool:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return delete_batch(deleter, batch)

    with monkeypatch.context() as patched:
        patched.setattr(bulk_delete.BulkDeleter, "_delete_batch", crash_later)
        with pytest.raises(KeyboardInterrupt):
            clean_output(S3(s3.storage), output, WEEK)
    left = list_keys(s3, output)
    assert left == {key for key in keys if not key.endswith(CHECKPOINT_MANIFEST_NAME)}  # the lock is released
    for key in left:
        put_aged(s3, output.bucket, key, 2 * WEEK)
    clean_output(S3(s3.storage), output, WEEK)
    assert list_keys(s3, output) == set()


def test_clean_output_aborts_old_uploads_of_runs(s3: S3Server, output: Location) -> None:
    names = ("model.safetensors", "merged/model.safetensors", f".checkpoints/{OLD}/step-1/optimizer.pt", "other/file")
    for name in names:
        s3.client.create_multipart_upload(Bucket=output.bucket, Key=output.key + name)
    assert clean_output(S3(s3.storage), output, WEEK).uploads == 0
    assert clean_output(S3(s3.storage), output, -1).uploads == 3
    uploads = s3.client.list_multipart_uploads(Bucket=output.bucket, Prefix=output.key)["Uploads"]
    assert [upload["Key"] for upload in uploads] == [output.key + "other/file"]


def test_clean_output_in_store_without_bulk_deletion_deletes_one_by_one(
    s3: S3Server, output: Location, proxy: FaultyProxy
) -> None:
    put_checkpoints(s3, output, OLD, 2 * WEEK, 10, 20)
    refused_request = Fault("501", "POST", "?delete")
    proxy.faults.append(refused_request)
    clean_output(S3(s3.storage), output, WEEK)
    assert refused_request.times == 0
    assert list_keys(s3, output) == set()


@pytest.mark.parametrize(
    ("uri", "secret", "expected"),
    [
        ("s3://no-such-bucket/x/", None, Reason.OUTPUT_NOT_FOUND),
        ("s3://results/x/", "wrong", Reason.AUTH_FAILED),
    ],
)
def test_clean_output_failure_has_the_reason_of_runs(
    s3: S3Server, credentials: object, uri: str, secret: str | None, expected: Reason
) -> None:
    if secret:
        credentials("test-key-id", secret)  # type: ignore[operator]
    with pytest.raises(TrainerError) as raised:
        clean_output(S3(s3.storage), Location.parse(uri), WEEK)
    assert raised.value.reason is expected


def test_clean_output_without_permission_is_denied(s3: S3Server, output: Location, credentials: object) -> None:
    put_checkpoints(s3, output, OLD, 2 * WEEK, 10)
    s3.add_user("cleaner", "cleaner-secret")
    credentials("cleaner", "cleaner-secret")  # type: ignore[operator]
    with pytest.raises(TrainerError) as raised:
        clean_output(S3(Storage(endpoint=s3.endpoint)), output, WEEK)
    assert raised.value.reason is Reason.ACCESS_DENIED


def test_find_outputs_returns_those_below_the_prefix(s3: S3Server, output: Location) -> None:
    names = ("a/", "a/nested/", "b/")
    for name in names:
        put_checkpoints(s3, output.child(name), OLD, 2 * WEEK, 1)
    put_aged(s3, output.bucket, f"{output.key}c/manifest.json", 2 * WEEK)
    assert find_outputs(S3(s3.storage), output) == [output.child(name) for name in names]
    assert find_garbage(S3(s3.storage), output.child("a/"), WEEK).objects == len(FILES)
