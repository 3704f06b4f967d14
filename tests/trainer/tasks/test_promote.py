"""The task that writes the alias of a schedule: what it replaces and what it leaves, also when others write it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.trainer.champions import SCHEDULE, build_task, put_result, read_alias, write_key
from tests.support.trainer.faulty_proxy import Fault, FaultyProxy

from finetune_trainer.contract import (
    SIGNING_KEY_FILE_ENV,
    TASK_CONFIG_ENV,
    ExitCode,
    PromoteTask,
    Reason,
    ResultReference,
)
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import S3, client
from finetune_trainer.tasks import runner
from finetune_trainer.tasks.promote import promote

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

pytestmark = pytest.mark.s3

SIGNING = {"signing": {"keySecretRef": {"name": "team-key"}}}


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"s3://results/{tmp_path.name}"


@pytest.fixture(scope="module")
def results(s3_server: S3Server) -> list[ResultReference]:
    return [put_result(s3_server, "s3://results/runs-of-bot", f"bot-{number}") for number in range(3)]


def succeed(first: ResultReference, second: ResultReference, prefix: str, **fields: Any) -> PromoteTask:
    """Build the task that replaces the first result with the second."""
    return build_task(prefix, second, predecessor=first.to_json(), **fields)


def fail(client: S3, task: PromoteTask) -> TrainerError:
    with pytest.raises(TrainerError) as error:
        promote(client, task)
    return error.value


def test_promote_writes_the_alias_and_its_outcome(
    s3: S3Server, prefix: str, results: list[ResultReference], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = build_task(prefix, results[0])
    config = {"storage": {"endpoint": s3.endpoint}, "promote": task.to_json()}
    monkeypatch.setenv(TASK_CONFIG_ENV, json.dumps(config))
    outcome = runner.run_task()
    assert read_alias(s3, prefix) == {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ChampionAlias",
        "schedule": SCHEDULE,
        "run": "bot-0",
        "adapterURI": "s3://results/runs-of-bot/bot-0",
        "digest": results[0].digest,
        "metrics": {"accuracy": 0.83, "evalLoss": 1e-05},
        "promotedTime": "2026-03-04T05:06:07Z",
    }
    assert (outcome.reason, outcome.message) == (Reason.COMPLETED, f"{prefix}/champion.json names bot-0")
    assert outcome.promote
    head = s3.client.head_object(Bucket="results", Key=f"{prefix.removeprefix('s3://results/')}/champion.json")
    assert (outcome.promote.etag, outcome.promote.signed) == (head["ETag"].strip('"'), False)


def test_promote_replaces_the_predecessor_and_names_it(
    s3: S3Server, s3_client: S3, prefix: str, results: list[ResultReference]
) -> None:
    promote(s3_client, build_task(prefix, results[0]))
    promote(s3_client, succeed(results[0], results[1], prefix))
    alias = read_alias(s3, prefix)
    assert (alias["run"], alias["predecessor"]) == ("bot-1", results[0].to_json())


def test_promote_repeated_task_changes_nothing(
    s3: S3Server, prefix: str, results: list[ResultReference], proxy: FaultyProxy
) -> None:
    promote(S3(s3.storage), build_task(prefix, results[0]))
    task = succeed(results[0], results[1], prefix)
    first = promote(S3(s3.storage), task)
    writes = len(proxy.written_paths)
    again = promote(S3(s3.storage), task.model_copy(update={"promoted_time": "2027-01-01T00:00:00Z"}))
    assert again == first
    assert len(proxy.written_paths) == writes
    assert read_alias(s3, prefix)["promotedTime"] == "2026-03-04T05:06:07Z"


def test_promote_deleted_alias_is_written_again(
    s3: S3Server, s3_client: S3, prefix: str, results: list[ResultReference]
) -> None:
    promote(s3_client, succeed(results[0], results[1], prefix))
    assert read_alias(s3, prefix)["run"] == "bot-1"


FOREIGN_CONTENTS = {
    "no JSON": (b"secret canary", "no JSON object with a kind"),
    "another kind": (
        b'{"kind": "Deployment", "password": "canary"}',
        "an object of kind 'Deployment' that is no valid",
    ),
    "a long kind": (json.dumps({"kind": "canary" * 1000}).encode(), "no JSON object with a kind"),
    "nothing": (b"", "no JSON object with a kind"),
}


@pytest.mark.parametrize(("content", "words"), FOREIGN_CONTENTS.values(), ids=FOREIGN_CONTENTS)
def test_promote_foreign_content_is_a_conflict(
    s3: S3Server, s3_client: S3, prefix: str, results: list[ResultReference], content: bytes, words: str
) -> None:
    s3.put(f"{prefix}/champion.json", content)
    for task in (build_task(prefix, results[0]), succeed(results[0], results[1], prefix)):
        error = fail(s3_client, task)
        assert error.reason is Reason.ALIAS_CONFLICT
        assert f"{prefix}/champion.json contains {words}" in error.message
        assert "set spec.champion.run, which replaces the object" in error.message
        assert "canary" not in error.message
    assert s3.get(f"{prefix}/champion.json") == content
    promote(s3_client, build_task(prefix, results[0], overwrite=True))
    assert read_alias(s3, prefix)["run"] == "bot-0"


def test_promote_alias_of_another_champion_or_schedule_is_a_conflict(
    s3: S3Server, s3_client: S3, prefix: str, results: list[ResultReference]
) -> None:
    promote(s3_client, build_task(prefix, results[2]))
    conflicts = (
        build_task(prefix, results[0]),
        succeed(results[0], results[1], prefix),
        build_task(prefix, results[2], schedule="team/other"),
        succeed(results[2], results[1], prefix, schedule="team/other"),
    )
    for task in conflicts:
        error = fail(s3_client, task)
        assert error.reason is Reason.ALIAS_CONFLICT
        assert f"contains the alias of the schedule {SCHEDULE} for the run bot-2" in error.message
    assert read_alias(s3, prefix)["run"] == "bot-2"


def call_on_first_reads(proxy: FaultyProxy, count: int, call: Callable[[], object]) -> None:
    """Call between the read and the write of a task, which the store sees one after the other."""
    reads = itertools.count()
    proxy.on_read = lambda path: path.endswith("/champion.json") and next(reads) < count and call()


@pytest.mark.parametrize("overwrite", [False, True])
def test_promote_two_writers_at_once_do_not_both_succeed_unless_both_overwrite(
    s3: S3Server, prefix: str, results: list[ResultReference], proxy: FaultyProxy, overwrite: bool
) -> None:
    promote(S3(s3.storage), build_task(prefix, results[0]))
    call_on_first_reads(proxy, 2, threading.Barrier(2, timeout=10).wait)

    def write(number: int) -> str:
        try:
            promote(S3(s3.storage), succeed(results[0], results[number], prefix, overwrite=overwrite))
        except TrainerError as error:
            return error.reason
        return f"bot-{number}"

    with ThreadPoolExecutor(2) as pool:
        endings = list(pool.map(write, (1, 2)))
    run = read_alias(s3, prefix)["run"]
    assert run in endings
    assert overwrite or sorted(endings) == sorted([run, Reason.ALIAS_CONFLICT])


@pytest.mark.parametrize("has_alias", [False, True])
def test_promote_foreign_write_after_the_read_is_not_replaced(
    s3: S3Server, prefix: str, results: list[ResultReference], proxy: FaultyProxy, has_alias: bool
) -> None:
    if has_alias:
        promote(S3(s3.storage), build_task(prefix, results[0]))
    call_on_first_reads(proxy, 1, lambda: s3.put(f"{prefix}/champion.json", b'{"kind": "Other"}'))
    error = fail(S3(s3.storage), succeed(results[0], results[1], prefix))
    assert error.reason is Reason.ALIAS_CONFLICT
    assert s3.get(f"{prefix}/champion.json") == b'{"kind": "Other"}'


def test_promote_alias_that_others_keep_writing_is_reported(
    s3: S3Server, prefix: str, results: list[ResultReference], proxy: FaultyProxy
) -> None:
    call_on_first_reads(proxy, 99, lambda: s3.put(f"{prefix}/champion.json", os.urandom(8)))
    error = fail(S3(s3.storage), build_task(prefix, results[0], overwrite=True))
    assert (error.reason, error.reason.exit_code) == (Reason.OUTPUT_BUSY, ExitCode.TRANSIENT)
    assert "others write this object at the same time" in error.message


def test_promote_killed_after_the_write_is_complete_when_repeated(
    s3: S3Server, prefix: str, results: list[ResultReference], proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(S3(s3.storage), build_task(prefix, results[0]))
    task = succeed(results[0], results[1], prefix)
    monkeypatch.setenv(TASK_CONFIG_ENV, json.dumps({"storage": {"endpoint": s3.endpoint}, "promote": task.to_json()}))
    with subprocess.Popen([sys.executable, "-m", "finetune_trainer", "task"], stdout=subprocess.DEVNULL) as process:
        proxy.on_write = lambda path: process.kill() if path.endswith("/champion.json") else None
        assert process.wait(30) == -signal.SIGKILL
    content, writes = s3.get(f"{prefix}/champion.json"), len(proxy.written_paths)
    assert promote(S3(s3.storage), task).etag
    assert (s3.get(f"{prefix}/champion.json"), len(proxy.written_paths)) == (content, writes)


def test_promote_lost_response_is_no_conflict(
    s3: S3Server, prefix: str, results: list[ResultReference], proxy: FaultyProxy
) -> None:
    proxy.faults.append(Fault("late", "PUT", "/champion.json"))
    promote(S3(s3.storage), build_task(prefix, results[0]))
    assert read_alias(s3, prefix)["run"] == "bot-0"


def test_promote_store_that_refuses_conditional_writes_gets_the_alias(
    s3: S3Server,
    prefix: str,
    results: list[ResultReference],
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(client, "OBSTORE_RETRY_CONFIG", {"max_retries": 0})
    proxy.faults.append(Fault("501", "PUT", "/champion.json"))
    promote(S3(s3.storage), build_task(prefix, results[0]))
    assert read_alias(s3, prefix)["run"] == "bot-0"
    assert "the store does not support conditional writes" in caplog.text


def test_promote_store_that_ignores_conditions_shows_the_last_writer(
    s3: S3Server, prefix: str, results: list[ResultReference], proxy: FaultyProxy
) -> None:
    proxy.ignores_conditions = True
    call_on_first_reads(proxy, 1, lambda: s3.put(f"{prefix}/champion.json", b'{"kind": "Other"}'))
    assert fail(S3(s3.storage), build_task(prefix, results[0])).reason is Reason.ALIAS_CONFLICT


def test_promote_champion_that_is_not_there_is_never_named(s3: S3Server, s3_client: S3, prefix: str) -> None:
    champion = put_result(s3, prefix, "bot-0")
    s3.put(f"{prefix}/bot-0/manifest.json", b"{}")
    error = fail(s3_client, build_task(prefix, champion))
    assert error.reason is Reason.STORAGE_CORRUPT
    assert f"{prefix}/bot-0/manifest.json has the digest sha256:" in error.message
    s3.client.delete_object(Bucket="results", Key=f"{prefix.removeprefix('s3://results/')}/bot-0/manifest.json")
    error = fail(s3_client, build_task(prefix, champion, overwrite=True))
    assert error.reason is Reason.MODEL_NOT_FOUND
    assert f"{prefix}/bot-0/manifest.json does not exist" in error.message
    assert not [key for key in s3.list_keys(prefix) if key.endswith("champion.json")]


def test_promote_without_permission_says_so(
    s3: S3Server, prefix: str, results: list[ResultReference], proxy: FaultyProxy
) -> None:
    proxy.faults.append(Fault("403", "PUT", "/champion.json"))
    error = fail(S3(s3.storage), build_task(prefix, results[0]))
    assert error.reason is Reason.ACCESS_DENIED
    assert f"{prefix}/champion.json" in error.message


CURVES = {
    "P-256": (ec.SECP256R1(), hashes.SHA256()),
    "P-384": (ec.SECP384R1(), hashes.SHA384()),
    "P-521": (ec.SECP521R1(), hashes.SHA512()),
}


@pytest.mark.parametrize(("curve", "algorithm"), CURVES.values(), ids=CURVES)
def test_promote_signature_is_that_of_the_dsse_specification(
    s3: S3Server,
    s3_client: S3,
    prefix: str,
    results: list[ResultReference],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    curve: ec.EllipticCurve,
    algorithm: hashes.HashAlgorithm,
) -> None:
    key = ec.generate_private_key(curve)
    write_key(tmp_path / "key.pem", key)
    monkeypatch.setenv(SIGNING_KEY_FILE_ENV, str(tmp_path / "key.pem"))
    assert promote(s3_client, build_task(prefix, results[0], **SIGNING)).signed
    alias = read_alias(s3, prefix)
    envelope = alias.pop("signature")
    payload, payload_type = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    assert payload_type == "application/vnd.finetune.champion+json"
    assert json.loads(payload) == alias
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
    encoded = b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)
    (signature,) = envelope["signatures"]
    key.public_key().verify(base64.b64decode(signature["sig"]), encoded, ec.ECDSA(algorithm))


def test_promote_alias_without_our_signature_is_signed(
    s3: S3Server,
    s3_client: S3,
    prefix: str,
    results: list[ResultReference],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A repeated task signs an unsigned alias, and one that was signed with an earlier key."""
    monkeypatch.setenv(SIGNING_KEY_FILE_ENV, str(tmp_path / "key.pem"))
    promote(s3_client, build_task(prefix, results[0]))
    key_ids = set()
    for _ in range(2):
        write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
        reports = [promote(s3_client, build_task(prefix, results[0], **SIGNING)) for _ in range(2)]
        assert reports[0].signed
        assert reports[0] == reports[1]
        key_ids.add(read_alias(s3, prefix)["signature"]["signatures"][0]["keyid"])
    assert len(key_ids) == 2


def test_promote_missing_key_is_reported_before_anything_is_written(
    s3: S3Server,
    s3_client: S3,
    prefix: str,
    results: list[ResultReference],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SIGNING_KEY_FILE_ENV, str(tmp_path / "key.pem"))
    error = fail(s3_client, build_task(prefix, results[0], **SIGNING))
    assert error.reason is Reason.AUTH_FAILED
    assert "output.signing: key signing-key.pem of Secret team-key cannot sign: " in error.message
    assert not [key for key in s3.list_keys(prefix) if key.endswith("champion.json")]
