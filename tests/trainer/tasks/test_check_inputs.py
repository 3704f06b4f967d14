"""The task that finds out whether data has changed: it agrees with what a run would do, and downloads nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.faulty_proxy import FaultyProxy
from tests.support.trainer.hub_server import HubHandler, hub_endpoint
from tests.support.trainer.run_records import DATASET_REPORT

from finetune_trainer.contract import (
    CLAIMS_DIR_ENV,
    TASK_CONFIG_ENV,
    CheckInputsTask,
    InputsReport,
    Reason,
    TrainerConfig,
)
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import resolve
from finetune_trainer.publishing.adapter_manifest import build_manifest
from finetune_trainer.records.manifest import AdapterManifest, compute_digest
from finetune_trainer.storage import S3
from finetune_trainer.tasks import runner
from finetune_trainer.tasks.check_inputs import check_inputs, format_report

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

__all__ = ["hub_endpoint"]
pytestmark = pytest.mark.s3

ROWS = b'{"prompt": "a", "completion": "b"}\n'


class Project:
    """The data, the model and the last result of a schedule."""

    def __init__(self, s3: S3Server, client: S3, folder: Path) -> None:
        self.s3, self.client, self.folder, self.root = s3, client, folder, f"s3://data/{folder.name}"
        contents = {
            "rows/a.jsonl": ROWS * 10,
            "rows/b.jsonl": ROWS * 20,
            "held-out/v.jsonl": ROWS,
            "model/config.json": b"{}",
            "model/model.safetensors": b"base",
            "champion/adapter_config.json": b"{}",
            "champion/adapter_model.safetensors": b"adapter",
            "rows/pairs.csv": b"sent_more,sent_less\n",
        }
        for name, content in contents.items():
            self.put(name, content)
        self.spec: dict[str, Any] = {
            "model": {"uri": f"{self.root}/model", "adapterURI": f"{self.root}/champion"},
            "dataset": {
                "sources": [{"uri": f"{self.root}/rows/"}],
                "validation": {"sources": [{"uri": f"{self.root}/held-out/v.jsonl"}]},
            },
            "evaluation": {
                "baselines": [{"name": "champion", "adapterURI": f"{self.root}/champion"}],
                "bias": {"pairsURI": f"{self.root}/rows/pairs.csv"},
            },
            "training": {"maxSteps": 1},
            "output": {"uri": f"{self.root}/rows/bot-2"},
            "storage": {"endpoint": s3.endpoint},
        }
        self.manifest: AdapterManifest | None = None

    def put(self, name: str, content: bytes) -> None:
        self.s3.put(f"{self.root}/{name}", content)

    def delete(self, name: str) -> None:
        bucket, _, key = f"{self.root}/{name}".removeprefix("s3://").partition("/")
        self.s3.client.delete_object(Bucket=bucket, Key=key)

    @property
    def config(self) -> TrainerConfig:
        return TrainerConfig.model_validate(self.spec)

    def publish(self) -> None:
        """Record the inputs in a manifest, as a run does."""
        resolved = resolve.resolve_inputs(self.config, self.client)
        downloaded = resolve.fetch_weights(resolved, resolve.start_download(resolved, self.folder).result())
        self.manifest = build_manifest(self.config, downloaded, "transformers", DATASET_REPORT, {})
        self.s3.put("s3://results/" + self.folder.name + "/manifest.json", self.manifest.to_bytes())

    @property
    def task(self) -> CheckInputsTask:
        dataset, test = self.spec["dataset"], self.spec["evaluation"].get("test", {})
        validation = dataset.get("validation", {})
        result = {
            "resultURI": f"s3://results/{self.folder.name}",
            "resultDigest": compute_digest(self.manifest.to_bytes()) if self.manifest else None,
        }
        return CheckInputsTask.model_validate(
            {
                "modelURI": self.spec["model"]["uri"],
                "sources": [*dataset["sources"], *validation.get("sources", []), *test.get("sources", [])],
                "outputURI": self.spec["output"]["uri"],
                **result,
            }
        )

    def check(self, **changes: Any) -> InputsReport:
        return check_inputs(self.client, self.task.model_copy(update=changes))

    def is_unchanged_for_a_run(self) -> bool:
        assert self.manifest
        resolved = resolve.resolve_inputs(self.config, self.client)
        return resolved.matches(self.manifest.model, self.manifest.inputs)


@pytest.fixture
def project(s3: S3Server, s3_client: S3, tmp_path: Path) -> Project:
    created = Project(s3, s3_client, tmp_path)
    created.publish()
    return created


def summarize(report: InputsReport) -> tuple[bool, int, int, bool]:
    return report.unchanged, report.added_bytes, report.removed_files, report.model_changed


SIZE = len(ROWS)
CHANGES: dict[str, tuple[Callable[[Project], None], tuple[bool, int, int, bool]]] = {
    "nothing": (lambda _: None, (True, 0, 0, False)),
    "a new file": (lambda each: each.put("rows/c.jsonl", ROWS * 3), (False, 3 * SIZE, 0, False)),
    "a file that grew": (lambda each: each.put("rows/a.jsonl", ROWS * 12), (False, 2 * SIZE, 0, False)),
    "a file that shrank": (lambda each: each.put("rows/b.jsonl", ROWS), (False, 0, 1, False)),
    "another file of equal size": (lambda each: each.put("rows/a.jsonl", ROWS[::-1] * 10), (False, 0, 1, False)),
    "a file that is gone": (lambda each: each.delete("rows/b.jsonl"), (False, 0, 1, False)),
    "validation data": (lambda each: each.put("held-out/v.jsonl", ROWS * 2), (False, SIZE, 0, False)),
    "a hidden file": (lambda each: each.put("rows/_SUCCESS", b""), (True, 0, 0, False)),
    "a file below the output": (lambda each: each.put("rows/bot-2/evaluation.jsonl", ROWS), (True, 0, 0, False)),
    "the upload of another run": (
        lambda each: (each.put("rows/bot-1/.upload.json", b"{}"), each.put("rows/bot-1/evaluation.jsonl", ROWS))[0],
        (True, 0, 0, False),
    ),
    "the model": (lambda each: each.put("model/model.safetensors", b"other"), (False, 0, 0, True)),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_check_inputs_agrees_with_a_run_about_what_has_changed(
    project: Project, change: Callable[[Project], None], expected: tuple[bool, int, int, bool]
) -> None:
    before = project.check()
    change(project)
    report = project.check()
    assert report.has_result
    assert summarize(report) == expected
    assert (report.digest == before.digest) is report.unchanged
    assert report.unchanged is project.is_unchanged_for_a_run()


def test_check_inputs_data_that_goes_back_has_the_earlier_digest(project: Project) -> None:
    before = project.check()
    project.put("rows/a.jsonl", ROWS)
    assert project.check().digest != before.digest
    project.put("rows/a.jsonl", ROWS * 10)
    assert project.check() == before


def test_check_inputs_adapters_are_no_inputs(project: Project) -> None:
    """The next run may start from another champion, and compares itself with it."""
    before = project.check()
    project.put("champion/adapter_model.safetensors", b"another adapter")
    assert project.check() == before


def test_check_inputs_sentence_pairs_in_the_folder_of_the_data_are_data_too(project: Project) -> None:
    """The manifest lists them twice, one after the other: as the last rows, and as pairs."""
    del project.spec["dataset"]["validation"]
    project.publish()
    assert summarize(project.check()) == (True, 0, 0, False)


def test_check_inputs_sources_in_another_order_are_the_same_data(project: Project) -> None:
    dataset = project.spec["dataset"]
    dataset["sources"], dataset["validation"]["sources"] = dataset["validation"]["sources"], dataset["sources"]
    assert project.check().unchanged


def test_check_inputs_lists_without_downloads(project: Project, proxy: FaultyProxy) -> None:
    report = check_inputs(S3(project.s3.storage), project.task)
    assert (report.files, report.bytes) == (4, 31 * SIZE + 20)
    downloads = [path for path in proxy.read_paths if "list-type=2" not in path]
    assert [path.rpartition("/")[2] for path in downloads] == ["v.jsonl", "manifest.json"]  # the first one is a HEAD
    assert len(proxy.read_paths) == 4


def test_check_inputs_without_a_result_has_nothing_to_compare(project: Project) -> None:
    expected = project.check().model_copy(update={"has_result": False, "unchanged": False})
    assert project.check(result_uri=None) == expected
    assert project.check(result_digest="sha256:" + "0" * 64) == expected
    assert project.check(result_uri="s3://results/no-such-result") == expected


def test_check_inputs_outcome_has_report_and_sentence(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.put("rows/c.jsonl", ROWS * 3)
    project.put("model/config.json", b"{ }")
    project.delete("rows/a.jsonl")
    storage = {"endpoint": project.s3.endpoint}
    monkeypatch.setenv(TASK_CONFIG_ENV, json.dumps({"storage": storage, "checkInputs": project.task.to_json()}))
    outcome = runner.run_task()
    assert outcome.reason is Reason.COMPLETED
    assert outcome.message == (
        "4 data files (860 B); since the last result 105 B added and 1 file removed or replaced; the base model is "
        "another one"
    )
    assert outcome.inputs == project.check()
    assert "there is no result to compare with" in format_report(project.check(result_uri=None))


WRONG_INPUTS = {
    "data": ({"sources": [{"uri": "s3://data/no-such-folder/"}]}, Reason.DATA_NOT_FOUND, "s3://data/no-such-folder/"),
    "model": ({"modelURI": "s3://models/no-such-model"}, Reason.MODEL_NOT_FOUND, "s3://models/no-such-model/"),
    "bucket": ({"sources": [{"uri": "s3://no-such-bucket/x/"}]}, Reason.DATA_NOT_FOUND, "the bucket does not exist"),
}


@pytest.mark.parametrize(("fields", "reason", "words"), WRONG_INPUTS.values(), ids=WRONG_INPUTS)
def test_check_inputs_that_do_not_exist_are_reported_as_by_a_run(
    project: Project, fields: dict[str, Any], reason: Reason, words: str
) -> None:
    task = CheckInputsTask.model_validate({**project.task.to_json(), **fields})
    with pytest.raises(TrainerError) as error:
        check_inputs(project.client, task)
    assert error.value.reason is reason
    assert words in error.value.message


def test_check_inputs_volumes_are_compared_by_content(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = tmp_path / "claims/team"
    monkeypatch.setenv(CLAIMS_DIR_ENV, str(claim.parent))
    for name, content in {"rows/a.jsonl": ROWS, "model/config.json": b"{}", "model/model.safetensors": b"b"}.items():
        (claim / name).parent.mkdir(parents=True, exist_ok=True)
        (claim / name).write_bytes(content)
    project.spec["model"] = {"uri": "pvc://team/model"}
    project.spec["dataset"] = {"sources": [{"uri": "pvc://team/rows/"}]}
    project.publish()
    assert summarize(project.check()) == (True, 0, 0, False)
    (claim / "rows/a.jsonl").write_bytes(ROWS[::-1])
    assert summarize(project.check()) == (False, 0, 1, False)
    (claim / "rows/a.jsonl").write_bytes(ROWS * 2)
    (claim / "model/model.safetensors").write_bytes(b"c")
    assert summarize(project.check()) == (False, SIZE, 0, True)
    assert not project.is_unchanged_for_a_run()


@pytest.fixture
def hub_project(project: Project, hub_endpoint: str) -> Project:
    """A model and a dataset on the hub: the run trains on one split, validates on another and ignores the third."""
    HubHandler.datasets.push("org/data", HUB_FILES)
    project.spec["model"] = {"uri": "hf://org/model"}
    uri = "hf://datasets/org/data"
    validation = {"sources": [{"uri": uri, "split": "validation"}]}
    project.spec["dataset"] = {"sources": [{"uri": uri}], "validation": validation}
    project.publish()
    return project


HUB_FILES = {
    "README.md": b"no configs",
    "data/train-00000-of-00001.parquet": b"0123456789",
    "data/validation-00000-of-00001.parquet": b"012",
    "data/test-00000-of-00001.parquet": b"01234",
}


def test_check_inputs_repository_of_the_hub_is_compared_by_commit(hub_project: Project) -> None:
    HubHandler.requests.clear()
    report = hub_project.check()
    assert summarize(report) == (True, 0, 0, False)
    assert (report.files, report.bytes) == (3, 18)
    assert len(HubHandler.requests) == 2  # the commits of model and data
    assert hub_project.is_unchanged_for_a_run()
    grown = {**HUB_FILES, "data/train-00000-of-00001.parquet": b"0123456789 and more"}
    HubHandler.datasets.push("org/data", grown)
    assert summarize(hub_project.check()) == (False, 9, 0, False)
    HubHandler.datasets.push("org/data", {**grown, "data/test-00000-of-00001.parquet": b"", "x.jsonl": ROWS})
    assert summarize(hub_project.check()) == (False, 9 + SIZE, 1, False)


def test_check_inputs_commit_that_only_changes_the_card_adds_nothing(hub_project: Project) -> None:
    HubHandler.datasets.push("org/data", {**HUB_FILES, "README.md": b"better words"})
    assert summarize(hub_project.check()) == (False, 0, 0, False)


def test_check_inputs_commit_of_the_result_that_is_gone_is_compared_with_its_files(hub_project: Project) -> None:
    HubHandler.datasets.commits.clear()
    HubHandler.datasets.push("org/data", {**HUB_FILES, "data/train-00000-of-00001.parquet": b"0123456789 and more"})
    assert summarize(hub_project.check()) == (False, 9 + 5, 0, False)


def test_check_inputs_another_split_of_the_same_commit_is_a_change(hub_project: Project) -> None:
    hub_project.spec["dataset"]["sources"][0]["split"] = "test"
    assert not hub_project.check().unchanged


def test_check_inputs_file_of_the_hub_is_compared_alone(hub_project: Project) -> None:
    hub_project.spec["dataset"] = {"sources": [{"uri": "hf://datasets/org/data/data/train-*"}]}
    hub_project.publish()
    assert summarize(hub_project.check()) == (True, 0, 0, False)
    HubHandler.datasets.push("org/data", {**HUB_FILES, "data/train-00001-of-00001.parquet": b"0123"})
    assert summarize(hub_project.check()) == (False, 4, 0, False)
