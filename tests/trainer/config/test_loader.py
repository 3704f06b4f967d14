"""Tests of reading manifests: the parsed values, and the error message for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ConfigDict
from tests.support.trainer.manifest_files import MANIFEST_HEAD, build_manifest, load_config

from finetune_trainer.config import loader
from finetune_trainer.contract import CONFIG_ENV, Model, Reason, cel_rules
from finetune_trainer.errors import TrainerError


def test_load_manifest_gives_config(tmp_path: Path) -> None:
    config = load_config(tmp_path, build_manifest("epochs: 1", "epochs: 1\n  learningRate: 2e-4"))
    assert config.output.uri == "s3://results/team/bot"
    assert config.training.learning_rate == 2e-4
    assert config.training.epochs == 1


def test_load_cluster_only_fields_are_ignored(tmp_path: Path) -> None:
    extra = "  compute: {gpusPerNode: 1}\n  backoffLimit: 2\n  storage: {credentialsSecretRef: {name: keys}}\n"
    assert load_config(tmp_path, build_manifest() + extra) == load_config(tmp_path, build_manifest())


WORKERS = {
    "not set": ("", 1),
    "one GPU": ("  compute: {gpusPerNode: 1}\n", 1),
    "a CPU": ("  compute: {gpusPerNode: 0}\n", 1),
    "CPUs": ("  compute: {nodes: 3, gpusPerNode: 0}\n", 3),
    "nodes with GPUs": ("  compute: {nodes: 2, gpusPerNode: 8}\n", 16),
    "nodes with one GPU each": ("  compute: {nodes: 2}\n", 2),
    "no numbers": ("  compute: {nodes: two}\n", 1),
    "no compute": ("  compute: 7\n", 1),
}


@pytest.mark.parametrize(("compute", "expected"), WORKERS.values(), ids=WORKERS)
def test_workers_count_from_compute(tmp_path: Path, compute: str, expected: int) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(build_manifest() + compute)
    assert loader.read_world_size(path) == expected


SCRATCH_SIZES = {
    "not set": ("  compute: {nodes: 2}\n", None),
    "binary unit": ("  compute: {scratch: {size: 1.5Gi}}\n", 1.5 * 2**30),
    "decimal unit": ("  compute: {scratch: {size: 20G}}\n", 20e9),
    "thousandths": ("  compute: {scratch: {size: 20000m}}\n", 20),
    "no unit": ("  compute: {scratch: {size: 1000}}\n", 1000),
    "no quantity": ("  compute: {scratch: {size: large}}\n", None),
    "no scratch": ("  compute: {scratch: 7}\n", None),
}


@pytest.mark.parametrize(("compute", "expected"), SCRATCH_SIZES.values(), ids=SCRATCH_SIZES)
def test_scratch_size_is_in_bytes(tmp_path: Path, compute: str, expected: float | None) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(build_manifest() + compute)
    assert loader.read_scratch_size(path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            build_manifest("epochs: 1", "seed: 1"),
            "spec.training: exactly one of epochs and maxSteps must be set (line 9)",
        ),
        (
            build_manifest("epochs: 1", "epochs: 1\n  maxSteps: 2"),
            "spec.training: exactly one of epochs and maxSteps must be set",
        ),
        (
            build_manifest("{uri: s3://models/tiny}", "{uri: s3://models/tiny, revision: main}"),
            "spec.model: revision applies to hf:// models only (line 5)",
        ),
        (
            build_manifest("s3://data/a.jsonl", "s3://data/../a"),
            "spec.dataset.sources[0]: uri must not contain '..' (line 8)",
        ),
        (
            build_manifest("epochs: 1", "epochs: 1\n  lora: {targetModules: [all-linear, q_proj]}"),
            "spec.training.lora: targetModules is either ['all-linear'] or a list of module names",
        ),
        (
            build_manifest(
                "epochs: 1",
                "epochs: 1\n  crossValidation: {folds: 3}\nevaluation: {gate: [{metric: evalLoss, maximum: 1}]}",
            ),
            "spec: evaluation.gate needs dataset.validation for all metrics except crossValidationLoss",
        ),
        (
            build_manifest("epochs: 1", "epochs: 1\nevaluation: {gate: [{metric: crossValidationLoss, maximum: 1}]}"),
            "spec: crossValidationLoss in evaluation.gate needs training.crossValidation",
        ),
        (
            build_manifest("epochs: 1", "epochs: 1\n  crossValidation: {folds: 11}"),
            "spec.training.crossValidation.folds: Input should be less than or equal to 10",
        ),
        (
            build_manifest("s3://data/a.jsonl", '"s3://data/a\tb"'),
            r"spec.dataset.sources[0].uri: String should match pattern '^[^\x00-\x1f]+$' (it is",
        ),
        (build_manifest("epochs: 1", "epochz: 1"), "spec.training.epochz: there is no such field (line 10)"),
        (
            build_manifest("epochs: 1", "epochs: -1"),
            "spec.training.epochs: Input should be greater than 0 (it is -1) (line 10)",
        ),
        (
            build_manifest('output: {uri: "s3://results/{namespace}/{name}"}', ""),
            "spec.output: this field is required (line 4)",
        ),
        (build_manifest() + "---\n" + build_manifest(), "contains 2 YAML documents, expected exactly one FineTuneJob"),
        ("", "contains 0 YAML documents"),
        ("- a\n- b\n", "is not a FineTuneJob: it is not a mapping"),
        (build_manifest().replace("FineTuneJob", "Job"), "is not a FineTuneJob of finetune.dev/…: kind Job"),
        (
            build_manifest().replace("finetune.dev", "batch"),
            "is not a FineTuneJob of finetune.dev/…: kind FineTuneJob, apiVersion batch",
        ),
        (MANIFEST_HEAD, "spec: a mapping is required"),
        (MANIFEST_HEAD + "  - 1\n", "spec: a mapping is required"),
        (build_manifest().replace("metadata: {name: bot, namespace: team}\n", ""), "metadata: a mapping is required"),
        (MANIFEST_HEAD + "  a: [1\n", "is not valid YAML: "),
        (build_manifest("epochs: 1", "epochs: 1\n  epochs: 2"), "found duplicate key"),
        (build_manifest("epochs: 1", "epochs: !!python/object/apply:os.system ['true']"), "spec.training.epochs: "),
    ],
)
def test_load_invalid_manifest_names_field_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TrainerError) as error:
        load_config(tmp_path, text)
    assert error.value.reason is Reason.CONFIG_INVALID
    assert message in error.value.message
    assert "job.yaml" in error.value.message


URIS = {
    "hub name": ("s3://models/tiny", "Qwen/Qwen3-8B", "spec.model: uri has no scheme: use hf://Qwen/Qwen3-8B for the"),
    "hub page": ("s3://models/tiny", "https://huggingface.co/a/b", "spec.model: a model of the Hugging Face hub is hf://"),
    "folder without a dot": ("s3://models/tiny", "model", "local folders, such as ./model, are read only"),
    "revision in the name": ("s3://models/tiny", "hf://a/b@main", "set its branch, tag or commit in revision"),
    "data set as a model": ("s3://models/tiny", "hf://datasets/a/b", "is hf://ORGANIZATION/NAME"),
    "data set's page": ("s3://data/a.jsonl", "https://huggingface.co/datasets/a/b", "not the address of its page"),
    "Windows path": ("s3://data/a.jsonl", r"C:\data\a.jsonl", "must not contain backslashes"),
    "space at the end": ("s3://data/a.jsonl", "'s3://data/a.jsonl '", "or a space at its start or end"),
    "language twice": ('{name}"', '{name}", languages: [en, en]', "languages[1]: is in the list twice (it is 'en')"),
    "model as a data set": ("s3://data/a.jsonl", "hf://a/b", "spec.dataset.sources[0]: a dataset of the Hugging Face"),
    "another cloud": ("s3://data/a.jsonl", "gs://data/a.jsonl", "uri must be s3://bucket/key, hf://datasets/OWNER/NAME"),
    "bucket in upper case": ("s3://data/a.jsonl", "s3://Data/a.jsonl", "bucket and claim have only a-z"),
    "split of a file": (
        "s3://data/a.jsonl", "hf://datasets/a/b/a.jsonl\n      split: test", "subset and split apply to hf://datasets/",
    ),
    "output on the hub": ("s3://results/", "hf://results/", "spec.output: uri must be s3://bucket/prefix"),
    "date in the output": ("/{name}", "/{date}", "uri has a brace that does not belong to {name} or {namespace}"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), URIS.values(), ids=URIS)
def test_load_wrong_uri_is_refused_with_what_is_accepted(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(TrainerError) as error:
        load_config(tmp_path, build_manifest(old, new))
    assert message in error.value.message
    assert len(error.value.message.splitlines()) == 1


SOURCES = {
    "relative": ("./rows.jsonl", "file://{folder}/rows.jsonl"),
    "bare name": ("rows.jsonl", "file://{folder}/rows.jsonl"),
    "glob": ("data/**/*.jsonl", "file://{folder}/data/**/*.jsonl"),
    "folder": ("../data/", "file://{parent}/data/"),
    "absolute": ("/data/x.jsonl", "file:///data/x.jsonl"),
    "home": ("~/x.jsonl", "file://{folder}/home/x.jsonl"),
    "claim": ("pvc://claim/a/*.csv", "pvc://claim/a/*.csv"),
    "hub": ("hf://datasets/a/b@refs/convert/parquet/default/*", "hf://datasets/a/b@refs/convert/parquet/default/*"),
}


@pytest.mark.parametrize(("uri", "expected"), SOURCES.values(), ids=SOURCES)
def test_load_local_path_is_relative_to_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, expected: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "work" / "home"))
    config = load_config(tmp_path, build_manifest("s3://data/a.jsonl", f'"{uri}"'))
    assert config.dataset.sources[0].uri == expected.format(folder=tmp_path / "work", parent=tmp_path)


def test_load_local_path_of_test_data_is_relative_to_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = build_manifest("epochs: 1", "epochs: 1\nevaluation: {test: {sources: [{uri: ./test.jsonl}]}}")
    test = load_config(tmp_path, text).evaluation.test
    assert test
    assert [source.uri for source in test.sources] == [f"file://{tmp_path}/test.jsonl"]


@pytest.mark.parametrize(("uri", "expected"), [("./model", "file://{folder}/model"), ("/models/a", "file:///models/a")])
def test_load_local_model_is_relative_to_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(tmp_path, build_manifest("s3://models/tiny", uri))
    assert config.model.uri == expected.format(folder=tmp_path)


def test_load_several_errors_are_listed_per_line(tmp_path: Path) -> None:
    with pytest.raises(TrainerError) as error:
        load_config(tmp_path, build_manifest("epochs: 1", "epochz: 1\n  batchSize: 0\n  seed: x"))
    _, *lines = error.value.message.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == [
        "spec.training.batchSize",
        "spec.training.seed",
        "spec.training.epochz",
    ]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_load_unreadable_file_is_config_invalid(tmp_path: Path, content: bytes | None) -> None:
    if content:
        (tmp_path / "job.yaml").write_bytes(content)
    with pytest.raises(TrainerError) as error:
        loader.load_manifest(tmp_path / "job.yaml")
    assert error.value.reason is Reason.CONFIG_INVALID


def test_broken_rules_transition_rules_are_skipped() -> None:
    class Part(Model):
        model_config = ConfigDict(json_schema_extra=cel_rules(("self.size < 3", "size must be small")))
        size: int

    class Whole(Model):
        model_config = ConfigDict(json_schema_extra=cel_rules(("self == oldSelf", "never changes"), ("false", "never")))
        parts: list[Part]

    whole = Whole(parts=[Part(size=1), Part(size=5)])
    assert list(loader.find_broken_rules(whole)) == [((), "never"), (("parts", 1), "size must be small")]


class TestEnvironment:
    """The config as the operator passes it."""

    def test_from_environment_reads_config(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = load_config(tmp_path, build_manifest())
        monkeypatch.setenv(CONFIG_ENV, json.dumps(config.to_json()))
        assert loader.load_from_environment() == config

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "FINETUNE_CONFIG is not set"),
            ("{", "FINETUNE_CONFIG: spec: Invalid JSON"),
            ("{}", "spec.model: this field is required"),
        ],
    )
    def test_load_invalid_manifest_names_field_and_line(
        self, text: str, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(CONFIG_ENV, text)
        with pytest.raises(TrainerError) as error:
            loader.load_from_environment()
        assert error.value.reason is Reason.CONFIG_INVALID
        assert message in error.value.message

    def test_from_environment_config_in_parts_is_joined(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = load_config(tmp_path, build_manifest())
        text = json.dumps(config.to_json())
        for name, part in zip(("", "_1", "_2"), (text[:50], text[50:90], text[90:]), strict=True):
            monkeypatch.setenv(f"{CONFIG_ENV}{name}", part)
        assert loader.load_from_environment() == config

    def test_from_environment_broken_rule_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        content = load_config(tmp_path, build_manifest()).to_json()
        content["training"]["maxSteps"] = 3
        monkeypatch.setenv(CONFIG_ENV, json.dumps(content))
        with pytest.raises(TrainerError, match=r"spec\.training: exactly one of epochs and maxSteps must be set"):
            loader.load_from_environment()
