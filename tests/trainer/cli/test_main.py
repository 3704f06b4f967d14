"""Tests of the command line as a process: its output, files and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from finetune_trainer.cli.app import build_parser
from finetune_trainer.contract import (
    CONFIG_ENV,
    MANIFEST_ENV,
    OUTCOME_PATH_ENV,
    SCRATCH_ENV,
    TASK_CONFIG_ENV,
    Outcome,
    Reason,
    Stage,
    TaskOutcome,
    TrainerConfig,
)
from finetune_trainer.telemetry import http_server

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server

ROOT = Path(__file__).parents[3]
CONFIG = {
    "model": {"uri": "s3://models/main/"},
    "dataset": {"sources": [{"uri": "s3://data/main.jsonl"}]},
    "training": {"maxSteps": 2, "backend": "transformers"},
    "output": {"uri": "s3://results/main"},
}


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the environment of a trainer pod, for the processes that a test starts."""

    def enter(config: dict[str, Any], endpoint: str) -> None:
        (tmp_path / "scratch").mkdir(exist_ok=True)
        content = config | {"storage": {"endpoint": endpoint}}
        if config["training"]:  # with every default, as a stored FineTuneJob has them
            content = TrainerConfig.model_validate(content).to_json()
        monkeypatch.setenv(CONFIG_ENV, json.dumps(content))
        monkeypatch.setenv(OUTCOME_PATH_ENV, str(tmp_path / "outcome"))
        monkeypatch.setenv(SCRATCH_ENV, str(tmp_path / "scratch"))
        monkeypatch.setenv(http_server.PORT_ENV, "0")

    return enter


def start_trainer(*arguments: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "finetune_trainer", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_trainer(*arguments: str) -> tuple[int, str, str]:
    with start_trainer(*arguments) as process:
        out, err = process.communicate()
    assert "canary" not in out + err
    return process.returncode, out, err


def read_outcome(tmp_path: Path) -> Outcome:
    return Outcome.model_validate_json((tmp_path / "outcome").read_bytes())


HELP_COMMANDS = [
    [], ["run"], ["plan"], ["generate"], ["chat-server"], ["cache"], ["cache", "fill"], ["cache", "list"], ["clean"],
    ["sync-alias"], ["task"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", [[*command, "--help"] for command in HELP_COMMANDS], ids=" ".join)
def test_help_is_fast_without_heavy_imports(arguments: list[str]) -> None:
    line = [sys.executable, "-X", "importtime", "-m", "finetune_trainer", *arguments]
    before = os.times().children_user
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert os.times().children_user - before < 1
    assert "usage: finetune-trainer" in done.stdout
    loaded = {import_line.rpartition("|")[2].strip() for import_line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & {
        "torch",
        "transformers",
        "boto3",
        "botocore",
        "obstore",
        "huggingface_hub",
        "ruamel.yaml",
        "cel",
    }


@pytest.mark.parametrize("command", HELP_COMMANDS, ids=" ".join)
def test_help_says_what_the_command_does(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([*command, "--help"])
    description = capsys.readouterr().out.split("\n\n")[1]
    assert re.fullmatch(r"[A-Z].*\.", description.replace("\n", " ")), description


@pytest.mark.parametrize("step", ["0", "-1", "x", "", "1.5"])
def test_run_step_to_stop_at_is_checked(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "job.yaml", f"--suspend-at-step={step}"])
    assert (
        f"--suspend-at-step: must be an optimizer step, an integer from 1 on, not '{step}'" in capsys.readouterr().err
    )


@pytest.mark.parametrize("count", ["-1", "x", "1001"])
def test_plan_number_of_shown_rows_is_checked(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["plan", "job.yaml", "--show-rows", count])
    assert f"--show-rows: must be a number from 0 to 1000, not '{count}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason", "message"),
    [
        (["run", "/no/such/file"], Reason.CONFIG_INVALID, "/no/such/file: cannot be read: No such file"),
        (["plan", "/no/such/file"], Reason.CONFIG_INVALID, "/no/such/file: cannot be read: No such file"),
        (["generate", "--prompt", "x"], Reason.CONFIG_INVALID, "name a manifest, or a model with --model"),
        (["generate", "--prompt", "x", "--model", "/no/such"], Reason.MODEL_NOT_FOUND, "/no/such is neither a folder"),
        (
            ["generate", "--prompt", "x", "--model", "/", "--adapter", "/no"],
            Reason.DATA_NOT_FOUND,
            "/no is neither",
        ),
    ],
)
def test_command_error_is_single_line_without_traceback(arguments: list[str], reason: Reason, message: str) -> None:
    status, out, err = run_trainer(*arguments)
    assert status == reason.exit_code == 42
    last = (out if arguments[0] == "run" else err).splitlines()[-1]
    assert last.startswith(f"{reason}: ")
    assert message in last
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("change", "endpoint", "reason", "status"),
    [
        ({"training": {}}, "http://127.0.0.1:9", Reason.CONFIG_INVALID, 42),
        ({}, "http://127.0.0.1:9", Reason.STORAGE_UNREACHABLE, 75),
    ],
)
def test_run_failure_in_pod_writes_outcome(
    pod: Callable[..., None],
    credentials: Callable[..., Path],
    tmp_path: Path,
    change: dict[str, Any],
    endpoint: str,
    reason: Reason,
    status: int,
) -> None:
    credentials("id", "secret-canary")
    pod(CONFIG | change, endpoint)
    exit_code, out, err = run_trainer("run")
    assert (exit_code, read_outcome(tmp_path).reason) == (status, reason)
    *_, sentence, last = out.splitlines()
    assert sentence.startswith(f"{reason}: ")
    assert Outcome.model_validate_json(last) == read_outcome(tmp_path)
    assert read_outcome(tmp_path).progress
    assert "Traceback" not in out + err


def test_run_internal_error_logs_traceback_only(
    pod: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod(CONFIG, "http://127.0.0.1:9")
    monkeypatch.setenv(http_server.PORT_ENV, "no number")
    status, out, err = run_trainer("run")
    assert (status, read_outcome(tmp_path).reason) == (1, Reason.INTERNAL_ERROR)
    assert read_outcome(tmp_path).message == "ValueError: invalid literal for int() with base 10: 'no number'"
    assert "Traceback" in err
    assert "Traceback" not in out


@pytest.fixture
def silent() -> Iterator[tuple[str, socket.socket]]:
    """Yield an endpoint that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", listener


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_stopped_while_store_is_silent_is_preempted(
    pod: Callable[..., None],
    credentials: Callable[..., Path],
    tmp_path: Path,
    silent: tuple[str, socket.socket],
    number: signal.Signals,
) -> None:
    endpoint, listener = silent
    credentials("id", "secret-canary")
    pod(CONFIG, endpoint)
    with start_trainer("run") as process:
        connection, _ = listener.accept()
        assert_stopped(process, number, tmp_path)
        connection.close()


def test_task_stopped_promises_no_checkpoint(
    credentials: Callable[..., Path],
    tmp_path: Path,
    silent: tuple[str, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint, listener = silent
    credentials("id", "secret-canary")
    task = {"storage": {"endpoint": endpoint}, "clean": {"outputURI": "s3://results/x", "minAgeSeconds": 1}}
    monkeypatch.setenv(TASK_CONFIG_ENV, json.dumps(task))
    monkeypatch.setenv(OUTCOME_PATH_ENV, str(tmp_path / "outcome"))
    with start_trainer("task") as process:
        connection, _ = listener.accept()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        connection.close()
    outcome = TaskOutcome.model_validate_json((tmp_path / "outcome").read_bytes())
    assert (process.returncode, outcome.reason, outcome.message) == (143, Reason.PREEMPTED, "stopped by SIGTERM")


@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.s3
def test_run_stopped_while_downloading_is_preempted(
    s3: S3Server, proxy: FaultyProxy, pod: Callable[..., None], tmp_path: Path, delay: float
) -> None:
    s3.put("s3://data/main.jsonl", b"{}")
    s3.put("s3://models/main/config.json", b"{}")
    proxy.stalled_key = "main.jsonl"
    pod(CONFIG | {"output": {"uri": f"s3://results/{tmp_path.name}"}}, s3.endpoint)
    # A glob, so that finding the object needs no HEAD of it.
    pod(CONFIG | {"dataset": {"sources": [{"uri": "s3://data/main.jsonl*"}]}}, s3.endpoint)
    with start_trainer("run") as process:
        assert proxy.stall_started.wait(30)
        time.sleep(delay)  # meanwhile torch is being imported
        assert_stopped(process, signal.SIGTERM, tmp_path)
    assert list((tmp_path / "scratch").iterdir()) == []


def assert_stopped(process: subprocess.Popen[str], number: signal.Signals, tmp_path: Path) -> None:
    process.send_signal(number)
    started_at = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert process.returncode == 143, err
    assert time.monotonic() - started_at < 10
    assert read_outcome(tmp_path).reason is Reason.PREEMPTED
    assert number.name in read_outcome(tmp_path).message
    assert "Traceback" not in out + err


@pytest.mark.s3
@pytest.mark.training
@pytest.mark.timeout(300)
def test_run_repeat_and_generate_end_to_end(s3: S3Server, pod: Callable[..., None], tmp_path: Path) -> None:
    # In a process of its own: libraries warn when they are first compiled, and here a warning is an error.
    build = (
        "import sys, pathlib; from tests.support.trainer import tiny_model; tiny_model.build(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", build, tmp_path / "model"], cwd=ROOT, check=True, capture_output=True)
    for path in (tmp_path / "model").iterdir():
        s3.put(f"s3://models/main/{path.name}", path.read_bytes())
    rows = [{"prompt": f"How do I turn lamp {n} on?", "completion": "Tap the top once."} for n in range(8)]
    s3.put("s3://data/main.jsonl", "\n".join(map(json.dumps, rows)).encode())
    output = f"s3://results/{tmp_path.name}"
    pod(CONFIG | {"output": {"uri": output}}, s3.endpoint)

    status, out, err = run_trainer("run")
    assert status == 0, out + err
    first = read_outcome(tmp_path)
    assert first.reason is Reason.COMPLETED
    assert first.result
    assert first.dataset
    assert first.progress
    assert (first.dataset.kept, first.progress.percentage, first.progress.stage) == (8, 100, Stage.DONE)
    assert first.backend == "transformers"
    assert f"{tmp_path.name}/adapter_model.safetensors" in s3.list_keys(output)
    assert list((tmp_path / "scratch").iterdir()) == []

    status, out, err = run_trainer("run")
    again = read_outcome(tmp_path)
    assert (status, again.reason, again.result) == (0, Reason.ALREADY_COMPLETE, first.result), out + err

    arguments = ["--model", "s3://models/main", "--adapter", output, "--endpoint", s3.endpoint, "--max-new-tokens", "4"]
    status, out, err = run_trainer("generate", *arguments, "--prompt", "Hello", "--prompt", "Lamp?", "--json")
    assert status == 0, out + err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["Hello", "Lamp?"]
    assert all(answer.keys() == {"prompt", "base", "adapter"} for answer in answers)


@pytest.mark.parametrize(
    "command",
    [
        ["clean", "s3://bucket/x", "--older-than", "7d"],
        ["sync-alias", "s3://bucket/a.json", "folder"],
        ["generate", "--model", "m", "--prompt", "p"],
    ],
    ids=lambda command: command[0],
)
def test_command_invalid_endpoint_is_named(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([*command, "--endpoint", "store:9000"])
    assert "argument --endpoint: must be a URL without a path" in capsys.readouterr().err


def test_plan_manifest_of_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MANIFEST_ENV, "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmeta")
    monkeypatch.setenv(f"{MANIFEST_ENV}_1", "data: {name: bot}\nspec:\n  modle: {}\n")
    status, out, err = run_trainer("plan")
    assert (status, out) == (Reason.CONFIG_INVALID.exit_code, "")
    assert err.startswith("ConfigInvalid: $FINETUNE_MANIFEST:")
    assert "spec.modle: there is no such field (line 5)" in err


def test_plan_without_manifest_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MANIFEST_ENV, raising=False)
    status, _, err = run_trainer("plan")
    assert (status, err) == (
        Reason.CONFIG_INVALID.exit_code,
        "ConfigInvalid: $FINETUNE_MANIFEST: cannot be read: it is not set; name a manifest, such as job.yaml\n",
    )
