"""Tests of reading results with a real S3 server."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from tests.support.operator.stored_results import FILES, build_record, build_rows, publish_result
from tests.support.trainer.run_records import make_manifest
from tests.support.trainer.s3_server import S3Server

from finetune_operator.client import ResultStore, ResultUnavailable, compare_runs, summarize_result
from finetune_trainer.contract import Storage

pytestmark = pytest.mark.s3


@pytest.fixture
def uri() -> str:
    """Return a prefix without objects."""
    return f"s3://results/client-{secrets.token_hex(4)}"


@pytest.fixture
def store(s3: S3Server) -> ResultStore:
    return ResultStore(s3.storage)


def test_read_result_returns_manifest_and_summary(s3: S3Server, store: ResultStore, uri: str) -> None:
    publish_result(s3, uri)
    summary = summarize_result(store.read_result(f"{uri}/"))
    assert (summary.namespace, summary.name, summary.phase) == ("support", "parcel-bot", "Complete")
    assert (summary.report_uri, summary.log_uri) == (f"{uri}/report.html", f"{uri}/run.log")


def test_read_result_half_published_says_manifest_is_missing(s3: S3Server, store: ResultStore, uri: str) -> None:
    s3.put(f"{uri}/adapter_model.safetensors", b"weights")
    with pytest.raises(ResultUnavailable, match=r"no complete result: manifest\.json, which is written last"):
        store.read_result(uri)


def test_read_result_replaced_is_refused(s3: S3Server, store: ResultStore, uri: str) -> None:
    publish_result(s3, uri)
    with pytest.raises(ResultUnavailable, match="another result has replaced that of the run"):
        store.read_result(uri, "sha256:" + "0" * 64)


@pytest.mark.parametrize("content", [b"", b"not json", b"{}", b"[]", b'{"files": "\x1b[31m"}'])
def test_read_result_damaged_manifest_is_one_line(s3: S3Server, store: ResultStore, uri: str, content: bytes) -> None:
    s3.put(f"{uri}/manifest.json", content)
    with pytest.raises(ResultUnavailable, match=r"manifest\.json cannot be read") as caught:
        store.read_result(uri)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_read_report_changed_content_is_refused(s3: S3Server, store: ResultStore, uri: str) -> None:
    publish_result(s3, uri)
    result = store.read_result(uri)
    assert store.read_report(result) == FILES["report.html"]
    s3.put(f"{uri}/report.html", b"<html>REPORT</html>")
    with pytest.raises(ResultUnavailable, match=r"report\.html is damaged or was replaced"):
        store.read_report(result)


def test_read_report_result_without_report_names_it(s3: S3Server, store: ResultStore, uri: str) -> None:
    publish_result(s3, uri, {"adapter_config.json": b"{}"})
    with pytest.raises(ResultUnavailable, match=r"has no file report\.html"):
        store.read_report(store.read_result(uri))


def test_read_evaluation_of_newer_version_is_none(s3: S3Server, store: ResultStore, uri: str) -> None:
    publish_result(s3, uri, {"evaluation.json": b'{"newer": 1}'})
    assert store.read_evaluation(store.read_result(uri)) is None


def test_read_file_hostile_name_is_refused(s3: S3Server, store: ResultStore, uri: str) -> None:
    publish_result(s3, uri, {"a": b""})
    result = store.read_result(uri)
    hostile = result.manifest.model_copy(update={"files": [build_record("../other", b"")]})
    with pytest.raises(ResultUnavailable, match=r"contains '\.' or '\.\.' as a folder"):
        store.read_file(type(result)(result.uri, hostile, result.digest), "../other")


def test_read_text_long_object_returns_its_end(s3: S3Server, store: ResultStore, uri: str) -> None:
    s3.put(f"{uri}/run.log", b"first\nmiddle\nlast")
    assert store.read_text(f"{uri}/run.log", max_bytes=4) == "last"


@pytest.mark.parametrize(
    "hostile", ["file:///etc/passwd", "s3://results/*", "s3://UPPER/x", "http://x/y", "s3://results/"]
)
def test_read_text_hostile_uri_is_refused(store: ResultStore, hostile: str) -> None:
    with pytest.raises(ResultUnavailable, match=r"is not (an S3 URI|the URI of an object)"):
        store.read_text(hostile)


def test_download_stores_files_with_manifest(s3: S3Server, store: ResultStore, uri: str, tmp_path: Path) -> None:
    publish_result(s3, uri)
    sizes: list[int] = []
    paths = store.download(store.read_result(uri), tmp_path / "adapter", sizes.append)
    assert {path.name: path.read_bytes() for path in paths if path.name != "manifest.json"} == FILES
    assert (tmp_path / "adapter" / "manifest.json").read_bytes() == s3.get(f"{uri}/manifest.json")
    assert sum(sizes) == sum(map(len, FILES.values()))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_download_again_repairs_and_keeps_equal_files(
    s3: S3Server, store: ResultStore, uri: str, tmp_path: Path
) -> None:
    publish_result(s3, uri)
    result, folder = store.read_result(uri), tmp_path / "adapter"
    store.download(result, folder)
    (folder / "run.log").write_bytes(b"damaged")
    kept = (folder / "report.html").stat().st_ino
    sizes: list[int] = []
    store.download(result, folder, sizes.append)
    assert (folder / "run.log").read_bytes() == FILES["run.log"]
    assert (folder / "report.html").stat().st_ino == kept
    assert sum(sizes) == len(FILES["run.log"])


def test_download_other_files_in_folder_is_refused(s3: S3Server, store: ResultStore, uri: str, tmp_path: Path) -> None:
    publish_result(s3, uri)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultUnavailable, match="is not a download of this result; choose an empty folder"):
        store.download(store.read_result(uri), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_download_damaged_file_leaves_nothing(s3: S3Server, store: ResultStore, uri: str, tmp_path: Path) -> None:
    publish_result(s3, uri)
    s3.put(f"{uri}/adapter_model.safetensors", b"WEIGHTS")
    with pytest.raises(ResultUnavailable, match=r"adapter_model\.safetensors is damaged or was replaced"):
        store.download(store.read_result(uri), tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\b", "manifest.json"])
def test_download_hostile_path_is_refused(
    s3: S3Server, store: ResultStore, uri: str, tmp_path: Path, name: str
) -> None:
    s3.put(f"{uri}/manifest.json", make_manifest(files=[build_record(name, b"")]).to_bytes())
    with pytest.raises(ResultUnavailable, match="which is not stored"):
        store.download(store.read_result(uri), tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_find_results_skips_hidden_and_merged_folders(s3: S3Server, store: ResultStore, uri: str) -> None:
    for folder in ("team/a", "team/b", "c", "team/a/merged", ".rejected/x", "team/a/.checkpoints/y"):
        publish_result(s3, f"{uri}/{folder}", {})
    s3.put(f"{uri}/broken/manifest.json", b"{")
    found = [result.uri for result in store.find_results(f"{uri}/{{namespace}}/{{name}}")]
    assert sorted(found) == [f"{uri}/c", f"{uri}/team/a", f"{uri}/team/b"]


def test_store_unreachable_names_endpoint_option(uri: str, s3: S3Server) -> None:
    store = ResultStore(Storage(endpoint="http://127.0.0.1:9"))
    with pytest.raises(ResultUnavailable, match="pass --endpoint or set FINETUNE_S3_ENDPOINT"):
        store.read_result(uri)


def test_store_wrong_key_names_variables(s3: S3Server, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ResultUnavailable, match=r"secret key does not match .*; set AWS_PROFILE") as caught:
        ResultStore(s3.storage).read_result(uri)
    assert "Secret," not in str(caught.value)


def test_store_denied_access_is_result_unavailable(s3: S3Server, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_result(s3, uri, {})
    user = f"user-{secrets.token_hex(4)}"
    s3.add_user(user, "some-secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "some-secret")
    with pytest.raises(ResultUnavailable, match="lack the permission"):
        ResultStore(s3.storage).read_result(uri)


def test_compare_runs_pairs_rows_and_shows_differences(s3: S3Server, store: ResultStore, uri: str) -> None:
    for name, loss in (("first", 2.0), ("second", 1.5)):
        rows = build_rows([loss + index / 100 for index in range(40)])
        metrics = {"evalLoss": loss, "trainSeconds": 60.0}
        publish_result(s3, f"{uri}/{name}", {"evaluation.jsonl": rows}, job=f"support/{name}", metrics=metrics)
    first, second = (store.read_result(f"{uri}/{name}") for name in ("first", "second"))
    comparison = compare_runs(first, second, store.read_rows(first), store.read_rows(second))
    assert (comparison.first, comparison.second, comparison.common_rows) == ("first", "second", 40)
    assert comparison.settings == comparison.data == []
    loss_row = next(row for row in comparison.metrics if row.name == "evalLoss")
    assert loss_row.verdict == "better"
    assert loss_row.change is not None
    assert loss_row.change.change == pytest.approx(-0.5)


def test_compare_runs_without_common_rows_says_why(s3: S3Server, store: ResultStore, uri: str) -> None:
    publish_result(s3, uri, {}, metrics={"evalLoss": 1.0})
    result = store.read_result(uri)
    changed = result.manifest.model_copy(update={"config": {"training": {"epochs": 2}}, "metrics": {"evalLoss": 2.0}})
    comparison = compare_runs(result, type(result)(uri, changed, result.digest))
    assert "training.epochs" in {difference.field for difference in comparison.settings}
    assert [row.verdict for row in comparison.metrics] == ["they have no common rows with lossTokens"]
