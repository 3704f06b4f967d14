"""Commands `init` and `validate`, without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import yaml
from tests.support.cli.command import CommandLine, run_finetune

from finetune_cli.commands import init
from finetune_trainer.contract import ModelSource, Training
from finetune_trainer.contract.evaluation import Task

SAMPLES = sorted((Path(__file__).parents[2] / "manifests" / "samples").glob("*.yaml"))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model", "unknown/model", "--task", "classification", "--validation", "s3://data/v.jsonl"],
        ["--method", "dpo", "--validation", "0", "--quantization", "nf4", "--gpus", "2", "--nodes", "2"],
        ["--method", "grpo", "--learning-rate", "1e-5"],
        ["--name", "on", "--secret", "true", "--endpoint", "http://s3:9000", "-n", "1e3", "--memory", "8Gi"],
        ["--data", "s3://data/a#b.jsonl", "--data", "s3://data/c: d.jsonl", "--hub-secret", "t", "--max-length", "99"],
    ],
    ids=["defaults", "classification", "preferences", "reward", "words of YAML", "special characters"],
)
def test_init_output_is_valid(finetune: CommandLine, options: list[str]) -> None:
    answer = finetune("init", *options)

    assert answer.status == 0
    assert run_finetune("validate", "-", stdin=answer.stdout).status == 0
    assert json.loads(finetune("init", *options, "-o", "json").stdout) == yaml.safe_load(answer.stdout)


def test_init_invalid_option_is_refused_with_the_field(finetune: CommandLine) -> None:
    answer = finetune("init", "--model", "hf://one/two/three")

    assert (answer.status, answer.stdout) == (2, "")
    assert "spec.model" in answer.stderr


def test_init_never_overwrites_a_file(finetune: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"

    assert finetune("init", "--file", path).status == 0
    content = path.read_text()
    answer = finetune("init", "--file", path, "--name", "other")

    assert answer.status == 1
    assert "is not overwritten" in answer.stderr
    assert path.read_text() == content


def test_init_ignores_endpoint_of_this_machine(finetune: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_S3_ENDPOINT", "http://127.0.0.1:9000")

    assert "endpoint" not in finetune("init").stdout


def test_init_choices_are_those_of_the_api() -> None:
    assert [*init.Task] == [*get_args(Task)]
    assert [*init.Method] == [*get_args(Training.model_fields["method"].annotation)]
    assert [*init.Quantization] == [*get_args(ModelSource.model_fields["quantization"].annotation)]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_validate_sample_is_valid(finetune: CommandLine, path: Path) -> None:
    assert finetune("validate", path).status == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 3", "epoch: 3", "spec.training.epoch: there is no such field (line 15)"),
        ("epochs: 3", "epochs: 3\n    maxSteps: 9", "exactly one of epochs and maxSteps must be set (line 14)"),
        ("gpusPerNode: 1 ", "gpusPerNode: 99 ", "spec.compute.gpusPerNode: Input should be less than or equal to 16"),
        ("hf://Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", "use hf://Qwen/Qwen3-0.6B for the model"),
        ("s3://data/a.jsonl", "./a.jsonl", "local files are read only without a cluster"),
        ("name: bot", "name: Bot.1", "metadata.name: the name of a FineTuneJob must have 1 to 52 characters"),
        ("name: bot", "name: bot\nspecs: {}", "specs: there is no such field (line 6)"),
        ("kind: FineTuneJob", "kind: FineTuneJobs", "kind: must be FineTuneJob, FineTuneSchedule, FineTuneSweep"),
        ("v1alpha1", "v9", "apiVersion: must be finetune.dev/v1alpha1 (it is 'finetune.dev/v9') (line 2)"),
        ("gpusPerNode: 1 ", "priorityClassName: system-x", "must not start with 'system-'"),
        ("compute:", "budget: {}\n  compute:", "budget needs gpuSeconds, activeSeconds or both"),
        ("spec:", "spec: [", "is not valid YAML"),
    ],
)
def test_validate_mistake_is_one_line_with_its_place(
    finetune: CommandLine, manifest_file: Path, old: str, new: str, message: str
) -> None:
    manifest_file.write_text(manifest_file.read_text().replace(old, new, 1))

    answer = finetune("validate", manifest_file)

    assert answer.status == 2
    assert message in answer.stderr
    assert all(line.startswith(f"error: {manifest_file}: ") for line in answer.stderr.splitlines())


def test_validate_several_files_reports_all(finetune: CommandLine, manifest_file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text(f"apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n---\n{manifest_file.read_text()}")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(manifest_file.read_text().replace("epochs: 3", "epochs: 0"))

    answer = finetune("validate", secret, wrong, "-o", "json")

    assert answer.status == 2
    found = [(Path(each["file"]).name, each["checked"], len(each["problems"])) for each in json.loads(answer.stdout)]
    assert found == [("secret.yaml", False, 0), ("secret.yaml", True, 0), ("wrong.yaml", True, 1)]


@pytest.mark.parametrize("content", [b"", b"- a\n", b"\xff\xfe", b"a: &a [*a]\n", b"a: !!python/object:os.system x"])
def test_validate_no_manifest_is_refused_with_exit_2(finetune: CommandLine, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)

    answer = finetune("validate", path)

    assert answer.status == 2
    assert answer.stderr.startswith(f"error: {path}")


def test_validate_hostile_text_is_escaped(finetune: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text('kind: "FineTune\\e[31m\\u202e"\napiVersion: "' + "x" * 10_000 + '"\n"\\e]0;t": 1\n')

    answer = finetune("validate", path)

    assert "\x1b" not in answer.stderr + answer.stdout
    assert "\u202e" not in answer.stderr + answer.stdout


def test_submit_two_documents_is_refused_with_what_creates_them(finetune: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    text = finetune("init").stdout
    path.write_text(f"{text}---\n{text}")

    answer = finetune("submit", path)

    assert (answer.status, answer.stdout) == (2, "")
    assert answer.stderr == (f"error: {path}: contains 2 YAML documents, expected one; kubectl apply takes them all\n")


def test_submit_invalid_name_of_the_option_is_named(finetune: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(finetune("init").stdout)

    answer = finetune("submit", path, "--name", "Bad Name")

    assert answer.status == 2
    assert "metadata.name: the name of a FineTuneJob must have" in answer.stderr


def test_submit_timeout_without_wait_is_refused(finetune: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(finetune("init").stdout)

    assert finetune("submit", path, "--timeout", "3").stderr == "error: --timeout applies with --wait only\n"


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("labels: {x y: a}", "metadata.labels.x y: a key is NAME or DOMAIN/NAME"),
        ("labels: {a: b c}", "metadata.labels.a: has at most 63 characters"),
        ("labels: {a: 5}", "metadata.labels.a: must be text: put it in quotes (it is 5)"),
        ("annotations: {a: true}", "metadata.annotations.a: must be text: put it in quotes (it is True)"),
        ("labels: [a]", "metadata.labels: a mapping is required"),
    ],
)
def test_validate_labels_and_annotations_have_the_rules_of_kubernetes(
    finetune: CommandLine, tmp_path: Path, metadata: str, problem: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(finetune("init").stdout.replace("metadata:\n", f"metadata:\n  {metadata}\n", 1))

    answer = finetune("validate", path)

    assert answer.status == 2
    assert problem in answer.stderr
    assert "(line " in answer.stderr


def test_validate_accepts_labels_and_annotations(finetune: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    metadata = 'labels: {kueue.x-k8s.io/queue-name: a.b_c, team: ""}\n  annotations: {note: "a b: ä"}'
    path.write_text(finetune("init").stdout.replace("metadata:\n", f"metadata:\n  {metadata}\n", 1))

    assert finetune("validate", path).status == 0
