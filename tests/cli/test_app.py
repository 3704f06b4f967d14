"""The frame of all commands: help, wrong arguments, errors, and what a shell sees of them."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.support.cli.command import SCRIPTS, CommandLine, run_finetune

from finetune_cli.commands.listing import PhaseFilter
from finetune_operator.api import Phase

HEAVY_MODULES = (
    "kubernetes", "boto3", "obstore", "scipy", "rich", "ruamel", "cel", "jinja2", "finetune_operator",
    "finetune_trainer.contract",
)  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["list", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_no_heavy_module(arguments: list[str]) -> None:
    code = (
        "import sys, finetune_cli.app as app\n"
        f"app.run({arguments})\n"
        f"sys.stderr.write(' '.join(sys.modules.keys() & set({HEAVY_MODULES})))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")


def test_help_lists_commands_with_their_first_sentence(finetune: CommandLine) -> None:
    answer = finetune()

    assert answer.status == 0
    assert "list         List runs, the newest first." in answer.stdout
    assert finetune("--help").stdout == answer.stdout


def test_version_is_that_of_the_package(finetune: CommandLine) -> None:
    assert finetune("--version").stdout == f"{version('finetune-operator')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command 'nope'; see `finetune --help`"),
        (["list", "--nope"], "No such option: --nope (Possible options: --owner, --phase); see `finetune list --help`"),
        (["list", "extra"], "Got unexpected extra argument(s) (extra); see `finetune list --help`"),
        (["watch"], "Missing argument 'name'; see `finetune watch --help`"),
        (["list", "-o", "xml"], "Invalid value for '--output' / '-o'"),
    ],
    ids=["command", "option", "argument", "missing", "value"],
)
def test_wrong_arguments_are_one_line_and_exit_2(finetune: CommandLine, arguments: list[str], message: str) -> None:
    answer = finetune(*arguments)

    assert (answer.status, answer.stdout) == (2, "")
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_missing_kubeconfig_is_one_line_without_traceback(finetune: CommandLine) -> None:
    answer = finetune("list")

    assert answer.status == 1
    assert answer.stderr.startswith("error: cannot read the kubeconfig")
    assert answer.stderr.count("\n") == 1


def test_plugin_calls_itself_as_the_user_does(finetune: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/kubectl-finetune"])

    assert "Usage: kubectl finetune " in finetune("--help").stdout
    assert "see `kubectl finetune --help`" in finetune("nope").stderr


def _run_with_bug(debug: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys, finetune_cli.commands.listing as listing, finetune_cli.app as app, finetune_cli.errors as errors\n"
        "sys.excepthook = errors.print_bug\n"
        "listing._collect_summaries = lambda *_: 1 / 0\n"
        "sys.exit(app.run(['list']))"
    )
    environment = {"FINETUNE_DEBUG": debug, "PATH": "/usr/bin"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_bug_is_one_line_that_says_how_to_get_the_traceback() -> None:
    result = _run_with_bug(debug="")

    assert result.returncode == 1
    assert result.stderr == (
        "error: this is a bug of finetune: ZeroDivisionError: division by zero; please report it; FINETUNE_DEBUG=1 "
        "prints the traceback\n"
    )


def test_bug_in_debug_mode_prints_the_traceback() -> None:
    assert "Traceback (most recent call last)" in _run_with_bug(debug="1").stderr


def test_output_whose_reader_is_gone_ends_without_a_word(manifest_file: Path) -> None:
    command = f"{SCRIPTS / 'finetune'} validate {f'{manifest_file} ' * 30} | true"

    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")


def test_completion_of_commands_and_values_works_for_kubectl() -> None:
    assert run_finetune("li", program="kubectl_complete-finetune").stdout == "list\n:4\n"
    methods = run_finetune("init", "--method", "", program="kubectl_complete-finetune").stdout
    assert methods == "sft\ndpo\nkto\ngrpo\nrloo\n:4\n"
    assert run_finetune("validate", "", program="kubectl_complete-finetune").stdout == ":0\n"


def test_completion_of_runs_without_a_cluster_prints_nothing(tmp_path: Path) -> None:
    environment = {"KUBECONFIG": str(tmp_path / "none")}

    answer = run_finetune("watch", "b", environment=environment, program="kubectl_complete-finetune")

    assert (answer.stdout, answer.stderr) == (":0\n", "")


def test_shell_completion_script_is_printed() -> None:
    answer = run_finetune("--show-completion", "bash", environment={"SHELL": "/bin/bash"})

    assert "_FINETUNE_COMPLETE=complete_bash" in answer.stdout


def test_full_disk_is_one_line(manifest_file: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [SCRIPTS / "finetune", "validate", manifest_file]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert (result.returncode, result.stderr) == (
        1,
        "error: the output cannot be written: No space left on device\n",
    )


def test_table_escapes_its_header_and_replaces_signs_that_ascii_lacks() -> None:
    code = (
        "from finetune_cli.terminal import OutputFormat, Terminal\n"
        "Terminal(OutputFormat.TABLE).print_table(['\\x1b[31m\\u202e'], [['\\u22120.5 \\u2192 1']])"
    )
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)

    assert result.stdout == "[U+001B][31m[U+202E]\n-0.5 -> 1\n"


@pytest.mark.parametrize("arguments", [["--phase", "nope"], ["-n", "A B"], ["-n", "../x"]])
def test_list_impossible_filter_is_refused(finetune: CommandLine, arguments: list[str]) -> None:
    answer = finetune("list", *arguments)

    assert answer.status != 0
    assert answer.stderr.count("\n") == 1


def test_list_phases_are_those_of_the_api() -> None:
    assert [each.value for each in PhaseFilter] == [each.value for each in Phase]
