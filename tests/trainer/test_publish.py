"""What lies at the output before and after a run, and what a run makes of it."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from finetune_trainer import inputs
from finetune_trainer.contract import CLAIMS_DIR_ENV, RUN_ID_ENV, DatasetReport, Outcome, Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.generating import Question, answer
from finetune_trainer.outcome import Known
from finetune_trainer.output.publish import Output
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.run import describe, run
from finetune_trainer.storage import S3

if TYPE_CHECKING:
    from tests.trainer.faulty_proxy import FaultyProxy
    from tests.trainer.s3_server import S3Server

pytestmark = pytest.mark.s3

REPORT = DatasetReport(rows=3, kept=2, rejected={"overlength": 1}, tokens=20, supervised_tokens=9, digest="sha256:d")
EXPORTED = {
    "README.md": b"card",
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ x }}",
}

DIES = """
import json, pathlib, sys
from tests.trainer.test_publish import Output, S3, TrainerConfig, publish

config = TrainerConfig.model_validate(json.loads(sys.argv[1]))
with Output(S3(config.storage), config).claimed():
    publish(config, pathlib.Path(sys.argv[2]))
"""


def config_for(s3: S3Server, output: str, **changes: Any) -> TrainerConfig:
    content = {
        "model": {"uri": "s3://models/tiny"},
        "dataset": {"sources": [{"uri": "s3://data/rows/"}]},
        "training": {"maxSteps": 1},
        "output": {"uri": output},
        "storage": {"endpoint": s3.endpoint},
    }
    return TrainerConfig.model_validate(content | changes)


@pytest.fixture
def prefix(s3: S3Server, tmp_path: Path) -> str:
    """A fresh output, and inputs as no test has left them."""
    s3.put("s3://data/rows/a.jsonl", b'{"prompt": "a", "completion": "b"}\n')
    s3.put("s3://data/rows/b.jsonl", b'{"prompt": "c", "completion": "d"}\n')
    s3.put("s3://models/tiny/config.json", b"{}")
    s3.put("s3://models/tiny/model.safetensors", b"base")
    return f"s3://results/{tmp_path.name}"


def publish(config: TrainerConfig, folder: Path, metrics: dict[str, float] | None = None, more: bytes = b"") -> Outcome:
    """Everything but the training."""
    s3 = S3(config.storage)
    export = folder / "export"
    export.mkdir(exist_ok=True)
    for name, content in EXPORTED.items():
        (export / name).write_bytes(content + more)
    fetched = inputs.start(inputs.locate(config, s3), folder).result()
    return Output(s3, config).publish(export, describe(config, fetched, "transformers", REPORT, metrics or {"x": 1.5}))


def test_a_result_is_complete_and_its_manifest_describes_it(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = config_for(s3, prefix)
    outcome = publish(config, tmp_path)
    assert outcome.reason is Reason.COMPLETED
    assert outcome.dataset == REPORT
    assert outcome.backend == "transformers"
    content = s3.get(f"{prefix}/manifest.json")
    assert outcome.result
    assert outcome.result.to_json() == {
        "adapterURI": prefix,
        "digest": "sha256:" + hashlib.sha256(content).hexdigest(),
        "modelRevision": json.loads(content)["model"]["revision"],
        "metrics": {"x": 1.5},
    }
    manifest = json.loads(content)
    assert {key: manifest[key] for key in ("apiVersion", "kind", "configDigest", "config", "backend")} == {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "AdapterManifest",
        "configDigest": config.digest(),
        "config": config.to_json(),
        "backend": "transformers",
    }
    assert [(each["uri"], each["size"], len(each["sha256"])) for each in manifest["inputs"]] == [
        ("s3://data/rows/a.jsonl", 35, 64),
        ("s3://data/rows/b.jsonl", 35, 64),
    ]
    assert {"torch", "transformers", "trl", "peft", "finetune-operator"} <= manifest["versions"].keys()
    published = {each["path"]: (each["size"], each["sha256"]) for each in manifest["files"]}
    assert published.keys() == EXPORTED.keys() | {"finetune_config.json"}
    for name, (size, digest) in published.items():
        stored = s3.get(f"{prefix}/{name}")
        assert (len(stored), hashlib.sha256(stored).hexdigest()) == (size, digest)
    assert "canary" not in content.decode()


def test_weights_go_first_and_the_manifest_last(s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy) -> None:
    publish(config_for(s3, prefix), tmp_path)
    written = [path.rpartition("/")[2] for path in proxy.written]
    assert written[0] == "adapter_model.safetensors"
    assert written[-2:] == ["adapter_config.json", "manifest.json"]
    assert sorted(written) == sorted([*EXPORTED, "finetune_config.json", "manifest.json"])


@pytest.mark.parametrize("last_word", ["manifest.json", "adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.timeout(180)
def test_a_run_that_dies_while_publishing_leaves_no_result(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy, last_word: str
) -> None:
    proxy.drops = last_word
    config = config_for(s3, prefix)
    with pytest.raises(TrainerError) as error:
        publish(config, tmp_path)
    assert error.value.reason is Reason.STORAGE_UNREACHABLE
    assert "manifest.json" not in {key.rpartition("/")[2] for key in s3.keys(prefix)}
    assert Output(S3(config.storage), config).existing() is None
    with pytest.raises(TrainerError, match=r"holds no finished result|no object has this prefix"):
        answer(Question("s3://models/tiny", None, prefix, ["hello"], 1, config.storage), tmp_path)
    proxy.drops = "\0"
    assert publish(config, tmp_path).reason is Reason.COMPLETED  # and the next attempt is not in its way


ORDER = [
    "adapter_model.safetensors",
    "README.md",
    "chat_template.jinja",
    "finetune_config.json",
    "tokenizer.json",
    "adapter_config.json",
    "manifest.json",
]


@pytest.mark.parametrize("last", ORDER)
def test_a_run_that_is_killed_after_any_write_leaves_all_or_nothing(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    config = config_for(s3, prefix)
    monkeypatch.setenv(RUN_ID_ENV, "one-run")
    line = [sys.executable, "-c", DIES, json.dumps(config.to_json()), tmp_path]
    with subprocess.Popen(line, cwd=Path(__file__).parents[2]) as victim:
        proxy.after_write = lambda path: victim.kill() if path.endswith(f"/{last}") else None
    assert victim.returncode == -signal.SIGKILL
    proxy.after_write = lambda path: None
    written = [name for name in (path.rpartition("/")[2] for path in proxy.written) if name != ".claim.json"]
    assert written == ORDER[: ORDER.index(last) + 1]
    assert f"{prefix}/.claim.json".removeprefix("s3://results/") in s3.keys(prefix)
    published = last == "manifest.json"
    assert (Output(S3(config.storage), config).existing() is not None) is published

    with Output(S3(config.storage), config).claimed():  # at once, since it is the same run
        again = publish(config, tmp_path, more=b" of the second attempt, which is longer")
    assert again.reason is (Reason.ALREADY_COMPLETE if published else Reason.COMPLETED)
    for file in json.loads(s3.get(f"{prefix}/manifest.json"))["files"]:
        content = s3.get(f"{prefix}/{file['path']}")
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (file["sha256"], file["size"]), file["path"]
        if file["path"] in EXPORTED:
            assert content.endswith(b"longer") is not published
    assert not [key for key in s3.keys(prefix) if "claim" in key]


def test_the_slower_of_two_attempts_ends_well_and_changes_nothing(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = config_for(s3, prefix)
    first = publish(config, tmp_path, {"x": 1})
    second = publish(config, tmp_path, {"x": 2})
    assert second.reason is Reason.ALREADY_COMPLETE
    assert second.result == first.result
    assert json.loads(s3.get(f"{prefix}/manifest.json"))["metrics"] == {"x": 1}


def test_of_24_attempts_that_publish_at_once_one_does(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config, start = config_for(s3, prefix), threading.Barrier(24)

    def attempt(number: int) -> Outcome:
        folder = tmp_path / str(number)
        folder.mkdir()
        start.wait()
        return publish(config, folder, {"x": number})

    with ThreadPoolExecutor(24) as pool:
        ends = list(pool.map(attempt, range(24)))
    winners = [number for number, each in enumerate(ends) if each.reason is Reason.COMPLETED]
    assert len(winners) == 1
    assert {each.reason for each in ends} == {Reason.COMPLETED, Reason.ALREADY_COMPLETE}
    assert json.loads(s3.get(f"{prefix}/manifest.json"))["metrics"] == {"x": winners[0]}
    assert {each.result.digest for each in ends if each.result} == {
        "sha256:" + hashlib.sha256(s3.get(f"{prefix}/manifest.json")).hexdigest()
    }


# --- what a run finds there; training is never reached, since the tiny "model" is none


def attempt(config: TrainerConfig, scratch: Path) -> Outcome:
    return run(config, scratch, Known(ProgressReporter()))


def test_the_same_run_again_is_already_complete(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = config_for(s3, prefix)
    first = publish(config, tmp_path)
    again = attempt(config, tmp_path)
    assert again.reason is Reason.ALREADY_COMPLETE
    assert (again.result, again.dataset, again.backend) == (first.result, first.dataset, first.backend)


LEFT = {
    "by this run": ({"runId": "me", "configDigest": "sha256:old"}, False),
    "by another run of this config": ({"runId": "other", "configDigest": "{digest}"}, False),
    "by a run of another config": ({"runId": "other", "configDigest": "sha256:other"}, True),
    "by who knows whom": ({}, True),
}


@pytest.mark.parametrize(("note", "stays"), LEFT.values(), ids=LEFT)
def test_a_claim_left_beside_a_result(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: dict[str, str], stays: bool
) -> None:
    monkeypatch.setenv(RUN_ID_ENV, "me")
    config = config_for(s3, prefix)
    publish(config, tmp_path)
    s3.put(f"{prefix}/.claim.json", json.dumps(note).replace("{digest}", config.digest()).encode())
    assert attempt(config, tmp_path).reason is Reason.ALREADY_COMPLETE
    assert any(key.endswith(".claim.json") for key in s3.keys(prefix)) is stays


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("s3://data/rows/a.jsonl", b"another"),
        ("s3://data/rows/c.jsonl", b"new"),
        ("s3://models/tiny/model.safetensors", b"other"),
        ("s3://models/tiny/extra.json", b"{}"),
    ],
)
def test_the_same_config_with_other_inputs(s3: S3Server, prefix: str, tmp_path: Path, uri: str, content: bytes) -> None:
    config = config_for(s3, prefix)
    publish(config, tmp_path)
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    s3.put(uri, content)
    try:
        with pytest.raises(TrainerError, match="model or data have changed since") as error:
            attempt(config, tmp_path)
    finally:
        s3.client.delete_object(Bucket=bucket, Key=key)
    assert error.value.reason is Reason.INPUTS_CHANGED


def test_another_config_never_overwrites(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    publish(config_for(s3, prefix), tmp_path)
    before = {key: s3.get(f"s3://results/{key}") for key in s3.keys(prefix)}
    with pytest.raises(TrainerError, match="the result of another config") as error:
        attempt(config_for(s3, prefix, training={"maxSteps": 2}), tmp_path)
    assert error.value.reason is Reason.OUTPUT_EXISTS
    assert {key: s3.get(f"s3://results/{key}") for key in s3.keys(prefix)} == before


@pytest.mark.parametrize("content", [b"", b"{}", b"no json", b'{"kind": "Other"}'])
def test_a_manifest_that_is_not_ours(s3: S3Server, prefix: str, tmp_path: Path, content: bytes) -> None:
    s3.put(f"{prefix}/manifest.json", content)
    with pytest.raises(TrainerError, match="did not write or cannot read") as error:
        attempt(config_for(s3, prefix), tmp_path)
    assert error.value.reason is Reason.OUTPUT_EXISTS


def test_a_newer_trainers_manifest_is_understood(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = config_for(s3, prefix)
    publish(config, tmp_path)
    content = json.loads(s3.get(f"{prefix}/manifest.json")) | {"somethingNew": {"a": 1}}
    s3.put(f"{prefix}/manifest.json", json.dumps(content).encode())
    assert attempt(config, tmp_path).reason is Reason.ALREADY_COMPLETE


def test_an_output_that_cannot_be_written_is_told_before_the_work(s3: S3Server, tmp_path: Path, prefix: str) -> None:
    with pytest.raises(TrainerError, match=r"s3://no-such-bucket/x/.* the bucket does not exist"):
        attempt(config_for(s3, "s3://no-such-bucket/x"), tmp_path)
    config = config_for(s3, prefix)
    with Output(S3(config.storage), config).claimed():
        assert json.loads(s3.get(f"{prefix}/.claim.json"))["configDigest"] == config.digest()
    assert not [key for key in s3.keys(prefix) if "claim" in key]


def test_a_model_on_a_volume_is_known_by_its_content(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "claims" / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_bytes(b"{}")
    (model / "model.safetensors").write_bytes(b"base")
    (model / "README.md").write_bytes(b"clutter")
    monkeypatch.setenv(CLAIMS_DIR_ENV, str(tmp_path / "claims"))
    config = config_for(s3, prefix, model={"uri": "pvc://models/tiny"})
    outcome = publish(config, tmp_path)
    in_bucket = inputs.start(inputs.locate(config_for(s3, prefix), S3(config.storage)), tmp_path / "export").result()
    assert outcome.result
    assert outcome.result.model_revision == in_bucket.model_revision  # the same files elsewhere are the same model
    assert attempt(config, tmp_path).reason is Reason.ALREADY_COMPLETE
    (model / "model.safetensors").write_bytes(b"else")
    with pytest.raises(TrainerError) as error:
        attempt(config, tmp_path)
    assert error.value.reason is Reason.INPUTS_CHANGED


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("pvc://models/missing", Reason.MODEL_NOT_FOUND),
        ("pvc://missing/tiny", Reason.MODEL_NOT_FOUND),
        ("pvc://models/link", Reason.MODEL_INVALID),
        ("s3://models/missing", Reason.MODEL_NOT_FOUND),
    ],
)
def test_models_that_are_not_there(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, reason: Reason
) -> None:
    (tmp_path / "claims" / "models").mkdir(parents=True)
    (tmp_path / "claims" / "models" / "link").symlink_to("/etc")
    monkeypatch.setenv(CLAIMS_DIR_ENV, str(tmp_path / "claims"))
    with pytest.raises(TrainerError) as error:
        attempt(config_for(s3, prefix, model={"uri": uri}), tmp_path)
    assert error.value.reason is reason, error.value.message


LINKS = {
    "a file that leaves it": ("chat_template.jinja", "../../../secret", Reason.MODEL_INVALID),
    "an absolute one": ("chat_template.jinja", "/etc/hostname", Reason.MODEL_INVALID),
    "a folder that leaves it": ("additional_chat_templates", "../../..", Reason.MODEL_INVALID),
    "to nothing": ("chat_template.jinja", "../../../none", Reason.MODEL_INVALID),
    "a folder that nobody reads": ("original", "/mnt/elsewhere", None),
    "within the volume": ("chat_template.jinja", "../blobs/template", None),
}


@pytest.mark.parametrize(("name", "target", "reason"), LINKS.values(), ids=LINKS)
def test_a_link_in_a_model_on_a_volume(
    s3: S3Server,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    target: str,
    reason: Reason | None,
) -> None:
    model, blobs = tmp_path / "claims" / "models" / "tiny", tmp_path / "claims" / "models" / "blobs"
    model.mkdir(parents=True)
    blobs.mkdir()
    (tmp_path / "secret").write_text("of the node")
    (blobs / "template").write_text("{{ messages }}")
    (model / "model.safetensors").write_bytes(b"base")
    (model / name).symlink_to(target)
    monkeypatch.setenv(CLAIMS_DIR_ENV, str(tmp_path / "claims"))
    config = config_for(s3, prefix, model={"uri": "pvc://models/tiny"})
    if reason is None:
        assert publish(config, tmp_path).reason is Reason.COMPLETED
        return
    with pytest.raises(TrainerError, match=f"pvc://models/tiny: '{name}' is a link that leaves the volume") as error:
        attempt(config, tmp_path)
    assert error.value.reason is reason


def test_a_result_with_a_damaged_file_is_not_used(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = config_for(s3, prefix)
    publish(config, tmp_path)
    s3.put(f"{prefix}/adapter_model.safetensors", b"damaged")
    with pytest.raises(TrainerError, match=r"adapter_model\.safetensors is not what manifest\.json says") as error:
        answer(Question("s3://models/tiny", None, prefix, ["hello"], 1, config.storage), tmp_path)
    assert error.value.reason is Reason.STORAGE_CORRUPT
