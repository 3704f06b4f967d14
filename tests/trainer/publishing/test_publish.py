"""A result is published completely or not at all, also after a kill and with concurrent attempts."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.untrained_runs import EXPORTED_FILES, REPORT, build_config, prefix, publish, run_untrained

from finetune_trainer.cli.generate import GenerateRequest, compare_completions
from finetune_trainer.contract import RUN_ID_ENV, Outcome, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.storage import S3
from finetune_trainer.telemetry.progress import ProgressReporter

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server

__all__ = ["prefix"]
pytestmark = pytest.mark.s3

PUBLISH_SCRIPT = """
import json, pathlib, sys
from tests.support.trainer.untrained_runs import OutputPrefix, S3, TrainerConfig, publish

from finetune_trainer.telemetry.progress import ProgressReporter

config = TrainerConfig.model_validate(json.loads(sys.argv[1]))
with OutputPrefix(S3(config.storage), config).hold_lock(ProgressReporter()):
    publish(config, pathlib.Path(sys.argv[2]))
"""


def test_publish_manifest_describes_complete_result(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = build_config(s3, prefix)
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
        "servable": json.loads(content)["servable"],
    }
    manifest = json.loads(content)
    assert {key: manifest[key] for key in ("apiVersion", "kind", "configDigest", "config", "backend")} == {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "AdapterManifest",
        "configDigest": config.digest(),
        "config": config.to_json(),
        "backend": "transformers",
    }
    assert [(entry["uri"], entry["size"], len(entry["sha256"])) for entry in manifest["inputs"]] == [
        ("s3://data/rows/a.jsonl", 35, 64),
        ("s3://data/rows/b.jsonl", 35, 64),
    ]
    assert {"torch", "transformers", "trl", "peft", "finetune-operator"} <= manifest["versions"].keys()
    published = {entry["path"]: (entry["size"], entry["sha256"]) for entry in manifest["files"]}
    assert published.keys() == EXPORTED_FILES.keys() | {"finetune_config.json"}
    for name, (size, digest) in published.items():
        stored = s3.get(f"{prefix}/{name}")
        assert (len(stored), hashlib.sha256(stored).hexdigest()) == (size, digest)
    assert "canary" not in content.decode()


def test_publish_writes_weights_first_manifest_last(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy
) -> None:
    publish(build_config(s3, prefix), tmp_path)
    written = [path.rpartition("/")[2] for path in proxy.written_paths]
    assert written[:2] == [".upload.json", "adapter_model.safetensors"]
    assert written[-2:] == ["adapter_config.json", "manifest.json"]
    assert sorted(written) == sorted([*EXPORTED_FILES, ".upload.json", "finetune_config.json", "manifest.json"])
    assert not [key for key in s3.list_keys(prefix) if "/." in key]


@pytest.mark.parametrize("last_word", ["manifest.json", "adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.timeout(180)
def test_publish_interrupted_leaves_no_result(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy, last_word: str
) -> None:
    proxy.dropped_key = last_word
    config = build_config(s3, prefix)
    with pytest.raises(TrainerError) as error:
        publish(config, tmp_path)
    assert error.value.reason is Reason.STORAGE_UNREACHABLE
    assert "manifest.json" not in {key.rpartition("/")[2] for key in s3.list_keys(prefix)}
    assert OutputPrefix(S3(config.storage), config).find_published() is None
    with pytest.raises(TrainerError, match=r"has no complete result|no object has this prefix"):
        compare_completions(GenerateRequest("s3://models/tiny", None, prefix, ["hello"], 1, config.storage), tmp_path)
    proxy.dropped_key = "\0"
    assert publish(config, tmp_path).reason is Reason.COMPLETED  # and the next attempt is not in its way


UPLOAD_ORDER = [
    ".upload.json",
    "adapter_model.safetensors",
    "README.md",
    "chat_template.jinja",
    "finetune_config.json",
    "tokenizer.json",
    "adapter_config.json",
    "manifest.json",
]


@pytest.mark.parametrize("last", UPLOAD_ORDER)
def test_publish_killed_after_any_write_is_all_or_nothing(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    config = build_config(s3, prefix)
    monkeypatch.setenv(RUN_ID_ENV, "one-run")
    line = [sys.executable, "-c", PUBLISH_SCRIPT, json.dumps(config.to_json()), tmp_path]
    with subprocess.Popen(line, cwd=Path(__file__).parents[3]) as victim:
        proxy.on_write = lambda path: victim.kill() if path.endswith(f"/{last}") else None
    assert victim.returncode == -signal.SIGKILL
    proxy.on_write = lambda path: None
    written = [name for name in (path.rpartition("/")[2] for path in proxy.written_paths) if name != ".claim.json"]
    assert written == UPLOAD_ORDER[: UPLOAD_ORDER.index(last) + 1]
    assert f"{prefix}/.claim.json".removeprefix("s3://results/") in s3.list_keys(prefix)
    published = last == "manifest.json"
    assert (OutputPrefix(S3(config.storage), config).find_published() is not None) is published

    with OutputPrefix(S3(config.storage), config).hold_lock(ProgressReporter()):  # at once, since it is the same run
        again = publish(config, tmp_path, suffix=b" of the second attempt, which is longer")
    assert again.reason is (Reason.ALREADY_COMPLETE if published else Reason.COMPLETED)
    for file in json.loads(s3.get(f"{prefix}/manifest.json"))["files"]:
        content = s3.get(f"{prefix}/{file['path']}")
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (file["sha256"], file["size"]), file["path"]
        if file["path"] in EXPORTED_FILES:
            assert content.endswith(b"longer") is not published
    leftovers = {key.rpartition("/")[2] for key in s3.list_keys(prefix) if "/." in key}
    assert leftovers <= ({".upload.json"} if published else set())
    assert run_untrained(config, tmp_path).reason is Reason.ALREADY_COMPLETE
    assert not [key for key in s3.list_keys(prefix) if "/." in key]


def test_publish_slower_attempt_changes_nothing(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = build_config(s3, prefix)
    first = publish(config, tmp_path, {"x": 1})
    second = publish(config, tmp_path, {"x": 2})
    assert second.reason is Reason.ALREADY_COMPLETE
    assert second.result == first.result
    assert json.loads(s3.get(f"{prefix}/manifest.json"))["metrics"] == {"x": 1}


def test_publish_24_concurrent_attempts_one_wins(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config, start = build_config(s3, prefix), threading.Barrier(24)

    def attempt(number: int) -> Outcome:
        folder = tmp_path / str(number)
        folder.mkdir()
        start.wait()
        return publish(config, folder, {"x": number})

    with ThreadPoolExecutor(24) as pool:
        ends = list(pool.map(attempt, range(24)))
    winners = [number for number, outcome in enumerate(ends) if outcome.reason is Reason.COMPLETED]
    assert len(winners) == 1
    assert {outcome.reason for outcome in ends} == {Reason.COMPLETED, Reason.ALREADY_COMPLETE}
    assert json.loads(s3.get(f"{prefix}/manifest.json"))["metrics"] == {"x": winners[0]}
    assert {outcome.result.digest for outcome in ends if outcome.result} == {
        "sha256:" + hashlib.sha256(s3.get(f"{prefix}/manifest.json")).hexdigest()
    }
