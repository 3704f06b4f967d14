"""The commands `task` and `clean`."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.trainer.champions import build_task, put_result, write_key
from tests.support.trainer.faulty_proxy import Fault, FaultyProxy
from tests.support.trainer.hub_server import HubHandler, hub_endpoint
from tests.support.trainer.task_packages import block_missing_packages
from tests.trainer.tasks.test_clean import OLD, TIMING, WEEK, list_keys, output, put_checkpoints

from finetune_trainer.cli import app, clean
from finetune_trainer.contract import OUTCOME_PATH_ENV, SIGNING_KEY_FILE_ENV, TASK_CONFIG_ENV, Reason, TaskOutcome
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing import output_lock
from finetune_trainer.publishing.output_lock import OutputLock
from finetune_trainer.storage import S3, Location
from finetune_trainer.tasks import runner
from finetune_trainer.telemetry.progress import ProgressReporter

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

__all__ = ["hub_endpoint", "output"]

MODULES_OF_OTHER_PACKAGES = ("torch", "numpy", "transformers", "datasets", "ruamel", "cel", "orjson", "huggingface_hub")


def build_config(endpoint: str, output: Location, **task: Any) -> str:
    clean_task = {"outputURI": str(output).rstrip("/"), "minAgeSeconds": int(WEEK), **task}
    return json.dumps({"storage": {"endpoint": endpoint}, "clean": clean_task})


@pytest.mark.s3
def test_task_clean_writes_outcome_and_imports_no_library_of_the_trainer(
    s3: S3Server, output: Location, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = put_checkpoints(s3, output, OLD, 2 * WEEK, 10)
    path = tmp_path / "outcome"
    path.touch()
    monkeypatch.setenv(TASK_CONFIG_ENV, build_config(s3.endpoint, output))
    monkeypatch.setenv(OUTCOME_PATH_ENV, str(path))
    program = (
        "import sys, finetune_trainer.__main__ as main; main.os._exit = sys.exit; sys.argv[1:] = ['task']\n"
        "try:\n    main.main()\nfinally:\n    print('imported:', *sys.modules, file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    outcome = TaskOutcome.model_validate_json(path.read_text())
    assert (process.returncode, outcome.reason) == (0, Reason.COMPLETED), process.stderr
    assert outcome.clean
    assert outcome.clean.objects == len(keys)
    assert outcome.message == f"deleted 5 objects of checkpoints (35 B) and 0 unfinished uploads at {output}"
    assert process.stdout.splitlines()[-1] == f"Completed: {outcome.message}"
    assert list_keys(s3, output) == set()
    imported = process.stderr.rpartition("imported:")[2].split()
    assert "boto3" in imported
    assert not set(MODULES_OF_OTHER_PACKAGES) & set(imported)


@pytest.mark.s3
def test_tasks_of_schedules_need_only_the_packages_of_their_image(
    s3: S3Server, output: Location, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub_endpoint: str
) -> None:
    """Also for a dataset of the hub, whose subsets the `datasets` library knows, and for a signed alias."""
    HubHandler.datasets.push("org/data", {"README.md": b"", "train.jsonl": b"{}"})
    write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    monkeypatch.setenv(SIGNING_KEY_FILE_ENV, str(tmp_path / "key.pem"))
    prefix = f"s3://{output.bucket}/{output.key.rstrip('/')}"
    champion = put_result(s3, prefix, "bot-1")
    check_inputs = {
        "modelURI": "hf://org/model",
        "sources": [{"uri": "hf://datasets/org/data"}, {"uri": f"{prefix}/bot-1/README.md"}],
        "outputURI": f"{prefix}/bot-2",
        "resultURI": f"{prefix}/bot-1",
    }
    promote = build_task(prefix, champion, signing={"keySecretRef": {"name": "team-key"}}).to_json()
    configs = ({"checkInputs": check_inputs}, {"promote": promote})
    tasks = [json.dumps({"storage": {"endpoint": s3.endpoint}, **config}) for config in configs]
    program = block_missing_packages(
        "import os\nfrom finetune_trainer.tasks import runner\n"
        f"for task in sys.argv[1:]:\n    os.environ['{TASK_CONFIG_ENV}'] = task; print(runner.run_task().reason)"
    )
    process = subprocess.run([sys.executable, "-c", program, *tasks], capture_output=True, text=True)
    assert process.stdout.split() == ["Completed", "Completed"], process.stderr


@pytest.mark.s3
def test_task_before_its_time_deletes_nothing(s3: S3Server, output: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = put_checkpoints(s3, output, OLD, 2 * WEEK, 10)
    now = datetime.now(UTC)
    for hours, expected_count in ((1, 0), (-1, len(keys))):
        not_before = (now + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
        monkeypatch.setenv(TASK_CONFIG_ENV, build_config(s3.endpoint, output, notBefore=not_before))
        report = runner.run_task().clean
        assert report
        assert report.objects == expected_count


INVALID_CONFIGS = [
    "",
    "{}",
    '{"clean": {"outputURI": "s3://b/x", "minAgeSeconds": -1}}',
    "no JSON",
    '{"clean": {"outputURI": "s3://b/x", "minAgeSeconds": 1, "notBefore": "tomorrow"}}',
    '{"clean": {"outputURI": "s3://b/x", "minAgeSeconds": 1, "notBefore": "2026-01-01T00:00:00"}}',
]


@pytest.mark.parametrize("config", INVALID_CONFIGS)
def test_task_invalid_config_is_reported(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TASK_CONFIG_ENV, config)
    with pytest.raises(TrainerError, match=TASK_CONFIG_ENV) as raised:
        runner.run_task()
    assert raised.value.reason is Reason.CONFIG_INVALID


@pytest.mark.s3
def test_clean_command_dry_run_shows_what_a_run_deletes(s3: S3Server, output: Location) -> None:
    keys = {key for name in ("a/", "b/") for key in put_checkpoints(s3, output.child(name), OLD, 2 * WEEK, 10)}
    arguments = ["clean", str(output), "--older-than", "7d", "--endpoint", s3.endpoint]
    lines = list(clean.clean_prefix(app.build_parser().parse_args([*arguments, "--dry-run"])))
    assert lines == [
        f"{output}a/: would delete 5 objects of checkpoints (35 B) and 0 unfinished uploads",
        f"{output}b/: would delete 5 objects of checkpoints (35 B) and 0 unfinished uploads",
        "2 outputs with checkpoints",
    ]
    assert list_keys(s3, output) == keys
    assert "deleted 5 objects" in next(iter(clean.clean_prefix(app.build_parser().parse_args(arguments))))
    assert list_keys(s3, output) == {key for key in keys if "/b/" in key}


@pytest.mark.s3
def test_clean_command_skips_the_output_of_an_active_run(
    s3: S3Server, output: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/", "b/"):
        put_checkpoints(s3, output.child(name), OLD, 2 * WEEK, 10)
    lock = OutputLock(S3(s3.storage), output.child("a/"), "run-1", "sha256:x", TIMING)
    lock.acquire(ProgressReporter())
    monkeypatch.setattr(output_lock, "LockTiming", lambda: TIMING)
    arguments = ["clean", str(output), "--older-than", "7d", "--endpoint", s3.endpoint]
    first, second, _ = clean.clean_prefix(app.build_parser().parse_args(arguments))
    lock.release()
    assert first.startswith(f"{output}a/: skipped, a run is active: ")
    assert second.startswith(f"{output}b/: deleted 5 objects")


@pytest.mark.s3
def test_clean_command_goes_on_after_an_output_that_fails(s3: S3Server, output: Location, proxy: FaultyProxy) -> None:
    for name in ("a/", "b/"):
        put_checkpoints(s3, output.child(name), OLD, 2 * WEEK, 10)
    proxy.faults.append(Fault("403", "PUT", "/a/.claim.json"))
    arguments = ["clean", str(output), "--older-than", "7d", "--endpoint", s3.endpoint]
    lines: list[str] = []
    with pytest.raises(TrainerError, match="1 of 2 outputs failed; the first: ") as raised:
        lines.extend(clean.clean_prefix(app.build_parser().parse_args(arguments)))
    assert raised.value.reason is Reason.ACCESS_DENIED
    failed, cleaned, _ = lines
    assert failed.startswith(f"{output}a/: failed: ")
    assert cleaned.startswith(f"{output}b/: deleted 5 objects")


@pytest.mark.parametrize(
    "arguments", [["x", "--older-than", "7d"], ["s3://bucket/x"], ["s3://b/x", "--older-than", "7"]]
)
def test_clean_command_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises((SystemExit, TrainerError)):
        list(clean.clean_prefix(app.build_parser().parse_args(["clean", *arguments])))
