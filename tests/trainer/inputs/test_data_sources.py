"""Tests of data on volumes, on a local disk and beside results in S3, and of the order of downloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.plan_jobs import PlanJobWriter
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, chat
from tests.support.trainer.untrained_runs import build_config, prefix, publish, run_untrained

from finetune_trainer.config.loader import load_manifest
from finetune_trainer.contract import CLAIMS_DIR_ENV, DataSource, Reason, Storage, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import resolve
from finetune_trainer.inputs.data_sources import DataListing, check_files_unchanged, list_data
from finetune_trainer.planning.plan import build_plan
from finetune_trainer.storage import S3

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server

__all__ = ["prefix"]
ROW = b'{"prompt": "a", "completion": "b"}\n'


def list_volume(uri: str) -> DataListing:
    return list_data(DataSource(uri=uri), S3(Storage()), "s3://results/x")


@pytest.fixture
def claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume with data, as it is mounted."""
    folder = tmp_path / "claims" / "team-data"
    for name in ("chat/b.jsonl", "chat/a.jsonl", "chat/_SUCCESS", "chat/deep/c.jsonl", "tables/d.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(ROW)
    (tmp_path / "secret.jsonl").write_bytes(ROW)
    (folder / "links").mkdir()
    (folder / "links" / "in.jsonl").symlink_to("../chat/a.jsonl")
    (folder / "out").mkdir()
    (folder / "out" / "escape.jsonl").symlink_to("../../../secret.jsonl")
    monkeypatch.setenv(CLAIMS_DIR_ENV, str(tmp_path / "claims"))
    return folder


VOLUME_FILES = {
    "file": ("chat/a.jsonl", ["chat/a.jsonl"]),
    "folder": ("chat/", ["chat/a.jsonl", "chat/b.jsonl", "chat/deep/c.jsonl"]),
    "folder without a slash": ("chat", ["chat/a.jsonl", "chat/b.jsonl", "chat/deep/c.jsonl"]),
    "glob": ("chat/*.jsonl", ["chat/a.jsonl", "chat/b.jsonl"]),
    "deep glob": ("**/*.csv", ["tables/d.csv"]),
    "link within the volume": ("links/", ["links/in.jsonl"]),
}


@pytest.mark.parametrize(("path", "expected"), VOLUME_FILES.values(), ids=VOLUME_FILES)
def test_volume_source_is_read_in_place(claim: Path, tmp_path: Path, path: str, expected: list[str]) -> None:
    files = list_volume(f"pvc://team-data/{path}").fetch(tmp_path / "work", lambda _: None)
    assert [file.uri for file in files] == [f"pvc://team-data/{name}" for name in expected]
    assert [file.path for file in files] == [claim / name for name in expected]
    assert not (tmp_path / "work").exists()


@pytest.mark.usefixtures("claim")
def test_volume_left_out_files_and_links_are_named(claim: Path) -> None:
    (claim / "chat" / "more").symlink_to("../tables")
    (claim / "chat" / "old.jsonl").symlink_to("moved.jsonl")
    selection = list_volume("pvc://team-data/chat/").selection
    links = "links to folders or to nothing"
    assert selection.left_out == {"hidden or temporary": ["_SUCCESS"], links: ["more", "old.jsonl"]}


VOLUME_MISTAKES = {
    "claim": ("pvc://none/a.jsonl", Reason.DATA_NOT_FOUND, "check the name of the claim"),
    "path": ("pvc://team-data/none.jsonl", Reason.DATA_NOT_FOUND, "none.jsonl; check the URI"),
    "misspelled path": ("pvc://team-data/chat/A.jsonl", Reason.DATA_NOT_FOUND, "chat/A.jsonl; is it a.jsonl?"),
    "brackets": ("pvc://team-data/chat/[ab].jsonl", Reason.DATA_NOT_FOUND, "only *, ? and ** are wildcards"),
    "all of a claim": ("pvc://team-data", Reason.DATA_INVALID, "is a link to a target outside of the volume"),
    "glob": ("pvc://team-data/chat/*.parquet", Reason.DATA_NOT_FOUND, "no file matches this pattern"),
    "link": ("pvc://team-data/out/", Reason.DATA_INVALID, "is a link to a target outside of the volume"),
    "linked file": ("pvc://team-data/out/escape.jsonl", Reason.DATA_INVALID, "is a link to a target outside"),
    "local file": (
        "file:///none/a.jsonl",
        Reason.DATA_NOT_FOUND,
        "/none/a.jsonl; an object in S3 is s3://bucket/key, and a dataset of the hub is hf://datasets/OWNER/NAME",
    ),
}


@pytest.mark.parametrize(("uri", "reason", "message"), VOLUME_MISTAKES.values(), ids=VOLUME_MISTAKES)
@pytest.mark.usefixtures("claim")
def test_volume_mistake_has_reason(uri: str, reason: Reason, message: str) -> None:
    with pytest.raises(TrainerError) as error:
        list_volume(uri)
    assert error.value.reason is reason
    assert message in error.value.message


def test_volume_root_has_all_files(claim: Path) -> None:
    (claim / "out" / "escape.jsonl").unlink()
    names = ["chat/a.jsonl", "chat/b.jsonl", "chat/deep/c.jsonl", "links/in.jsonl", "tables/d.csv"]
    assert list_volume("pvc://team-data").selection.names == names


def test_volume_file_that_changes_while_it_is_read_is_an_error(claim: Path, tmp_path: Path) -> None:
    files = list_volume("pvc://team-data/chat/a.jsonl").fetch(tmp_path, lambda _: None)
    check_files_unchanged(files)
    (claim / "chat" / "a.jsonl").write_bytes(ROW * 2)
    with pytest.raises(TrainerError, match=r"chat/a\.jsonl: the file changed while the run read it") as error:
        check_files_unchanged(files)
    assert error.value.reason is Reason.STORAGE_CORRUPT
    (claim / "chat" / "a.jsonl").unlink()
    with pytest.raises(TrainerError, match="the file changed"):
        check_files_unchanged(files)


def test_local_file_is_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(ROW)
    (file,) = list_volume(f"file://{tmp_path}/*.jsonl").fetch(tmp_path / "work", lambda _: None)
    assert (file.uri, file.path) == (f"file://{tmp_path}/a.jsonl", tmp_path / "a.jsonl")


@pytest.mark.s3
def test_volume_data_is_compared_by_content(s3: S3Server, prefix: str, claim: Path, tmp_path: Path) -> None:
    dataset = {"sources": [{"uri": "pvc://team-data/chat/"}]}
    config = build_config(s3, prefix, dataset=dataset)
    publish(config, tmp_path)
    (claim / "chat" / "a.jsonl").touch()
    assert run_untrained(config, tmp_path).reason is Reason.ALREADY_COMPLETE
    (claim / "chat" / "a.jsonl").write_bytes(ROW.replace(b"a", b"c"))
    with pytest.raises(TrainerError) as error:
        run_untrained(config, tmp_path)
    assert error.value.reason is Reason.INPUTS_CHANGED


@pytest.mark.s3
def test_result_below_prefix_of_data_is_no_data(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    folder = f"s3://data/{tmp_path.name}"
    s3.put(f"{folder}/a.jsonl", ROW)
    dataset = {"sources": [{"uri": f"{folder}/"}]}
    publish(build_config(s3, f"{folder}/adapters/first", dataset=dataset), tmp_path)
    s3.put(f"{folder}/adapters/second/evaluation.jsonl", ROW)  # of an attempt that did not complete
    resolved = resolve.resolve_inputs(
        build_config(s3, f"{folder}/adapters/second", dataset=dataset), S3(Storage(endpoint=s3.endpoint))
    )
    assert [record.uri for record in resolved.data[0].list_records()] == [f"{folder}/a.jsonl"]
    assert resolved.skipped_files == len(s3.list_keys(f"{folder}/adapters/"))


@pytest.mark.s3
def test_baselines_are_downloaded_and_recorded(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    for name in ("may", "june"):
        s3.put(f"s3://models/{name}/adapter_config.json", b"{}")
        s3.put(f"s3://models/{name}/adapter_model.safetensors", name.encode())
    baselines = [{"name": name, "adapterURI": f"s3://models/{name}"} for name in ("may", "june")]
    config = build_config(s3, prefix, evaluation={"baselines": baselines})
    resolved = resolve.resolve_inputs(config, S3(config.storage))
    downloaded = resolve.start_download(resolved, tmp_path).result()
    contents = {
        name: (fetched.folder / "adapter_model.safetensors").read_bytes()
        for name, fetched in downloaded.baselines.items()
    }
    assert contents == {"may": b"may", "june": b"june"}
    publish(config, tmp_path / "work")
    assert run_untrained(config, tmp_path).reason is Reason.ALREADY_COMPLETE
    s3.put("s3://models/june/adapter_model.safetensors", b"july")
    with pytest.raises(TrainerError) as error:
        run_untrained(config, tmp_path)
    assert error.value.reason is Reason.INPUTS_CHANGED


@pytest.mark.s3
def test_baseline_without_adapter_is_named(s3: S3Server, prefix: str) -> None:
    s3.put("s3://models/incomplete-adapter/adapter_config.json", b"{}")
    evaluation = {"baselines": [{"name": "may", "adapterURI": "s3://models/incomplete-adapter"}]}
    config = build_config(s3, prefix, evaluation=evaluation)
    with pytest.raises(TrainerError, match=r"evaluation\.baselines\[0\]\.adapterURI must be the prefix of a LoRA"):
        resolve.resolve_inputs(config, S3(config.storage))


@pytest.mark.s3
@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
def test_plan_reports_files_that_are_left_out(s3: S3Server, model_dir: Path, tmp_path: Path) -> None:
    writer = PlanJobWriter(s3, tmp_path)
    writer.upload_model(model_dir)
    config = load_manifest(writer.write([chat("a", "b")]))
    (tmp_path / "rows").mkdir()
    for name in ("a.jsonl", "_SUCCESS", "README.md"):
        (tmp_path / "rows" / name).write_text(json.dumps(chat("a", "b")))
    source = DataSource(uri=f"file://{tmp_path}/rows/")
    config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"sources": [source]})})
    report = build_plan(config, tmp_path).dataset
    assert (report.rows, report.skipped_files) == (1, 2)


@pytest.fixture
def damaged(s3: S3Server, proxy: FaultyProxy, model_dir: Path, tmp_path: Path) -> TrainerConfig:
    """The config of a run whose last row is damaged, behind the proxy."""
    writer = PlanJobWriter(s3, tmp_path)
    writer.upload_model(model_dir)
    row = chat("a", "b")
    path = writer.write([row])
    s3.put(f"s3://data/{tmp_path.name}.jsonl", json.dumps(row).encode() + b'\n{"messages": ')
    proxy.read_paths.clear()
    return load_manifest(path)


@pytest.mark.s3
@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
@pytest.mark.parametrize("start", [run_untrained, build_plan])
def test_damaged_data_ends_run_and_plan(
    damaged: TrainerConfig, proxy: FaultyProxy, tmp_path: Path, start: Callable[[TrainerConfig, Path], object]
) -> None:
    with pytest.raises(TrainerError, match="line 2") as error:
        start(damaged, tmp_path)
    assert error.value.reason is Reason.DATA_INVALID
    assert any("tokenizer" in path for path in proxy.read_paths)
    if start is build_plan:  # a run downloads the weights meanwhile
        assert not any("safetensors" in path for path in proxy.read_paths)
