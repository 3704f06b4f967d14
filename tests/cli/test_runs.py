"""Commands for runs in a cluster, against a real API server. The test writes statuses as the operator does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

import pytest
import yaml
from tests.support.cli.command import SCRIPTS, CommandLine, run_finetune
from tests.support.operator.api_server import OPERATOR_TOKEN
from tests.support.operator.client_namespace import VIEW_RULES, ClientNamespace, write_client_kubeconfig

from local_cluster import tools

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore:Unverified HTTPS request")]
BIDI, ESCAPE = "\u202e", "\x1b"
PROGRESS = {
    "stage": "Training", "percentage": 57, "completed": "57%", "step": 24, "totalSteps": 42, "loss": 1.25,
    "evalLoss": 1.5, "estimatedRemaining": "1m2s", "lastUpdateTime": "2026-11-23T08:00:00Z",
}  # fmt: skip


@pytest.fixture
def kubectl(namespace: ClientNamespace) -> Path:
    """Return the real kubectl, with the plugin on the PATH."""
    tools.ensure_built()
    return Path(tools.find_program("kubectl"))


def test_submit_creates_object_and_list_shows_it(
    finetune: CommandLine, namespace: ClientNamespace, manifest_file: Path
) -> None:
    answer = finetune("submit", manifest_file)

    assert (answer.status, answer.stdout) == (0, f"FineTuneJob bot created in namespace {namespace.name}\n")
    lines = finetune("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "PHASE", "REASON", "PROGRESS", "ETA", "LOSS", "DURATION", "AGE", "SOURCE"]
    assert lines[1].split()[0] == "bot"


def test_submit_existing_name_fails_with_one_line(
    finetune: CommandLine, namespace: ClientNamespace, manifest_file: Path
) -> None:
    finetune("submit", manifest_file)

    answer = finetune("submit", manifest_file)

    assert answer.status == 1
    assert "exists" in answer.stderr
    assert finetune("submit", manifest_file, "--name", "other").status == 0


def test_submit_invalid_manifest_prints_each_mistake_and_creates_nothing(
    finetune: CommandLine, namespace: ClientNamespace, manifest_file: Path
) -> None:
    text = manifest_file.read_text().replace("gpusPerNode: 1", "gpusPerNode: 99").replace("epochs: 3", "epochs: 0")
    manifest_file.write_text(text)

    answer = finetune("submit", manifest_file)

    assert answer.status == 2
    assert answer.stderr.count("error: ") == 2
    assert finetune("list", "-o", "json").stdout == "[]\n"


@pytest.mark.parametrize(("condition", "status"), [("Complete", 0), ("Failed", 1), ("Cancelled", 3), ("Suspended", 4)])
def test_watch_exit_status_is_the_outcome(
    finetune: CommandLine, namespace: ClientNamespace, condition: str, status: int
) -> None:
    namespace.create_job()
    namespace.write_condition(condition, condition, phase=condition)

    answer = finetune("watch", "bot")

    assert answer.status == status
    assert f"bot: {condition}" in answer.stdout
    assert f"message of {condition}" in answer.stdout


def test_submit_wait_timeout_exits_5_and_run_stays(
    finetune: CommandLine, namespace: ClientNamespace, manifest_file: Path
) -> None:
    answer = finetune("submit", manifest_file, "--wait", "--timeout", "0.2")

    assert answer.status == 5
    assert answer.stderr.count("\n") == 2
    assert "bot" in finetune("list").stdout


def test_watch_without_terminal_prints_one_line_for_each_change(namespace: ClientNamespace) -> None:
    namespace.create_job()
    namespace.write_condition("Running", "PodRunning", phase="Running", progress=PROGRESS)
    with subprocess.Popen([SCRIPTS / "finetune", "watch", "bot"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = process.stdout.readline()
        namespace.write_condition("Complete", "Completed", phase="Complete", progress={**PROGRESS, "step": 42})
        rest = process.stdout.read()

    line = "Running (PodRunning): Training, 57%, step 24/42, loss 1.25, eval loss 1.5, 1m2s left\n"
    assert first == line
    assert "step 42/42" in rest
    assert process.returncode == 0


def test_watch_interrupted_leaves_run_alone_and_says_so(namespace: ClientNamespace) -> None:
    namespace.create_job()
    namespace.write_condition("Running", "PodRunning", phase="Running", progress=PROGRESS)
    command = [SCRIPTS / "finetune", "watch", "bot"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()

    assert process.returncode == 130
    assert message.startswith("bot continues in the cluster")
    spec = namespace.call("GET", namespace.path("finetunejobs", "bot"))["spec"]
    assert not spec["suspend"]
    assert not spec["cancel"]


def _read_until(stream: IO[str], text: str) -> str:
    output = ""
    while text not in output:
        char = stream.read(1)
        assert char, output
        output += char
    return output


@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)], ids=["colour", "NO_COLOR"])
def test_watch_on_terminal_shows_bar_and_losses(namespace: ClientNamespace, no_color: str, colored: bool) -> None:
    namespace.create_job()
    namespace.write_condition("Running", "PodRunning", phase="Running", progress=PROGRESS)
    with subprocess.Popen(
        ["script", "-qec", f"stty cols 60; {SCRIPTS / 'finetune'} watch bot --timeout 50", "/dev/null"],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": no_color, "PYTHONIOENCODING": "utf-8"},
    ) as process:  # fmt: skip
        assert process.stdout
        output = _read_until(process.stdout, "1.25")
        namespace.write_condition("Running", "PodRunning", progress={**PROGRESS, "step": 25, "loss": 1.0})
        output += _read_until(process.stdout, "loss █▁ 1")
        namespace.write_condition("Complete", "Completed", phase="Complete")
        output += process.stdout.read()

    assert "bot: Complete" in output
    assert "━" in output
    assert ("\x1b[38" in output or "\x1b[3" in output or "\x1b[1;3" in output) == colored


def test_hostile_texts_are_escaped_everywhere(finetune: CommandLine, namespace: ClientNamespace) -> None:
    hostile = f"{ESCAPE}[31m{BIDI}red\nnext{'x' * 3000}"
    namespace.create_job()
    condition = {
        "type": "Failed", "status": "True", "reason": "DataInvalid", "message": hostile, "observedGeneration": 1,
        "lastTransitionTime": "2026-11-23T08:00:00Z",
    }  # fmt: skip
    namespace.write_status({"conditions": [condition], "phase": "Failed", "duration": f"{ESCAPE}[2J{BIDI}"})

    answers = [
        finetune("list"),
        finetune("watch", "bot"),
        finetune("list", "-o", "yaml"),
        finetune("list", "-o", "json"),
    ]

    for answer in answers:
        assert ESCAPE not in answer.stdout + answer.stderr
        assert BIDI not in answer.stdout + answer.stderr
    state, outcome = answers[1].stdout.splitlines()
    assert state.startswith("Failed (DataInvalid): [U+001B][31m")
    assert outcome.startswith("bot: Failed (DataInvalid): [U+001B][31m")
    assert json.loads(answers[3].stdout)[0]["message"] == hostile
    assert yaml.safe_load(answers[2].stdout) == json.loads(answers[3].stdout)


def test_list_of_200_runs_is_complete_and_filtered(finetune: CommandLine, namespace: ClientNamespace) -> None:
    for index in range(200):
        namespace.create_job(f"run-{index:03}", labels={"finetune.dev/schedule": "nightly"} if index < 3 else {})
    namespace.write_status({"phase": "Failed", "reason": "DataInvalid"}, "run-007")

    begin = time.process_time()
    data = json.loads(finetune("list", "-o", "json").stdout)

    assert len({each["name"] for each in data}) == 200
    assert time.process_time() - begin < 10
    assert [each["name"] for each in json.loads(finetune("list", "--phase", "failed", "-o", "json").stdout)] == [
        "run-007"
    ]
    assert finetune("list", "--phase", "Complete").stderr == f"No runs found in namespace {namespace.name}.\n"


def test_list_on_narrow_terminal_fits_its_width(namespace: ClientNamespace) -> None:
    namespace.create_job("a-name-of-fifty-characters-that-is-as-long-as-it-can")
    namespace.write_status(
        {"phase": "Running", "duration": "x" * 32, "progress": PROGRESS},
        "a-name-of-fifty-characters-that-is-as-long-as-it-can",
    )

    result = subprocess.run(
        ["script", "-qec", f"stty cols 100; {SCRIPTS / 'finetune'} list", "/dev/null"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True,
        env={key: value for key, value in os.environ.items() if key != "COLUMNS"},
    )  # fmt: skip

    assert max(map(len, result.stdout.splitlines())) <= 100


def test_viewer_may_list_and_is_told_which_role_may_cancel(
    finetune: CommandLine, namespace: ClientNamespace, tmp_path: Path
) -> None:
    namespace.create_job()
    namespace.connect_tenant(VIEW_RULES)
    write_client_kubeconfig(tmp_path / "kubeconfig", namespace.server, namespace.name, OPERATOR_TOKEN)

    assert "bot" in finetune("list").stdout
    answer = finetune("cancel", "bot", "--yes")
    assert answer.status == 1
    assert "finetune-operator-edit" in answer.stderr
    assert finetune("list", "-A").status == 1


def test_cancel_without_terminal_needs_yes(finetune: CommandLine, namespace: ClientNamespace) -> None:
    namespace.create_job()

    refused = run_finetune("cancel", "bot")

    assert refused.status == 2
    assert "add --yes" in refused.stderr
    assert not namespace.call("GET", namespace.path("finetunejobs", "bot"))["spec"]["cancel"]
    assert finetune("cancel", "bot", "-y").status == 0
    assert namespace.call("GET", namespace.path("finetunejobs", "bot"))["spec"]["cancel"]


def test_suspend_and_resume_change_the_spec(finetune: CommandLine, namespace: ClientNamespace) -> None:
    namespace.create_job()

    assert finetune("suspend", "job/bot").stdout == "bot suspended: it saves a checkpoint and ends its pods\n"
    assert namespace.call("GET", namespace.path("finetunejobs", "bot"))["spec"]["suspend"]
    assert json.loads(finetune("resume", "bot", "-o", "json").stdout)["requested"] == "resumed"
    assert not namespace.call("GET", namespace.path("finetunejobs", "bot"))["spec"]["suspend"]


@pytest.mark.parametrize("command", [["suspend", "bot"], ["resume", "bot"], ["cancel", "bot", "--yes"]], ids=" ".join)
def test_control_of_an_ended_run_is_refused_and_changes_nothing(
    finetune: CommandLine, namespace: ClientNamespace, command: list[str]
) -> None:
    namespace.create_job()
    namespace.write_condition("Complete", "Completed")
    before = namespace.call("GET", namespace.path("finetunejobs", "bot"))

    answer = finetune(*command)

    assert (answer.status, answer.stderr) == (1, "error: FineTuneJob bot has ended: it is Complete\n")
    assert namespace.call("GET", namespace.path("finetunejobs", "bot")) == before


def test_resume_of_a_run_that_is_not_suspended_is_refused(finetune: CommandLine, namespace: ClientNamespace) -> None:
    namespace.create_job()

    assert finetune("resume", "bot").stderr == "error: FineTuneJob bot is not suspended\n"
    namespace.write_condition("Suspended", "BudgetExhausted")
    assert "has exhausted its budget: raise spec.budget" in finetune("resume", "bot").stderr


def test_sweep_and_schedule_can_be_suspended(finetune: CommandLine, namespace: ClientNamespace) -> None:
    for kind, sample in (("schedule", "schedule"), ("sweep", "sweep")):
        path = Path(__file__).parents[2] / "manifests" / "samples" / f"{sample}.yaml"
        assert finetune("submit", path, "--name", "owner").status == 0
        assert finetune("suspend", f"{kind}/owner").status == 0
        assert namespace.call("GET", namespace.path(f"finetune{kind}s", "owner"))["spec"]["suspend"]
    assert finetune("cancel", "sweep/owner", "--yes").status == 0
    assert finetune("cancel", "schedule/owner", "--yes").status == 2


def test_validate_with_server_asks_it_and_creates_nothing(
    finetune: CommandLine, namespace: ClientNamespace, manifest_file: Path
) -> None:
    assert finetune("validate", "--server", manifest_file).status == 0
    assert finetune("list", "-o", "json").stdout == "[]\n"
    assert finetune("submit", manifest_file).status == 0
    assert finetune("validate", "--server", manifest_file).status == 0


def test_init_pipes_into_kubectl_and_plugin_lists_it(kubectl: Path, namespace: ClientNamespace) -> None:
    environment = {**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    command = f"set -o pipefail; {kubectl} finetune init --name piped | {kubectl} apply -f - && {kubectl} finetune list"

    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)

    assert result.returncode == 0, result.stderr
    assert "piped" in result.stdout.splitlines()[-1]
    completed = subprocess.run(
        [kubectl, "__complete", "finetune", "watch", "pi"], capture_output=True, text=True, env=environment, check=True
    )
    assert completed.stdout == "piped\n:4\n"
    assert shutil.which("kubectl_complete-finetune", path=environment["PATH"])
