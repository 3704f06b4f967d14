"""Commands for results, against a real API server and a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.support.cli.command import CommandLine, run_finetune
from tests.support.operator.client_namespace import ClientNamespace
from tests.support.operator.stored_results import FILES, build_rows, publish_result
from tests.support.trainer.s3_server import S3Server

pytestmark = [
    pytest.mark.cluster, pytest.mark.s3, pytest.mark.filterwarnings("ignore:Unverified HTTPS request"),
]  # fmt: skip


@pytest.fixture
def endpoint(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, at the address that this machine uses."""
    monkeypatch.setenv("FINETUNE_S3_ENDPOINT", s3.endpoint)
    return s3


def _write_result(namespace: ClientNamespace, s3: S3Server, uri: str, name: str = "bot", **changes: object) -> None:
    """Create a complete run with a result in S3."""
    import hashlib

    publish_result(s3, uri, **changes)  # type: ignore[arg-type]
    digest = "sha256:" + hashlib.sha256(s3.get(f"{uri}/manifest.json")).hexdigest()
    namespace.create_job(name)
    result = {"adapterURI": uri, "reportURI": f"{uri}/report.html", "digest": digest, "modelRevision": "main"}
    namespace.write_status({"phase": "Complete", "result": result}, name)


def test_get_adapter_downloads_all_files(
    finetune: CommandLine, namespace: ClientNamespace, endpoint: S3Server, tmp_path: Path
) -> None:
    _write_result(namespace, endpoint, "s3://results/get")

    answer = finetune("get-adapter", "bot", tmp_path / "adapter")

    assert answer.status == 0
    assert "all digests match s3://results/get/manifest.json" in answer.stdout
    for name, content in FILES.items():
        assert (tmp_path / "adapter" / name).read_bytes() == content
    again = finetune("get-adapter", "s3://results/get/", tmp_path / "adapter", "-o", "json")
    assert json.loads(again.stdout)["uri"] == "s3://results/get"


def test_get_adapter_damaged_file_fails_and_leaves_nothing_under_its_name(
    finetune: CommandLine, namespace: ClientNamespace, endpoint: S3Server, tmp_path: Path
) -> None:
    _write_result(namespace, endpoint, "s3://results/damaged")
    endpoint.put("s3://results/damaged/adapter_model.safetensors", b"wEights")

    answer = finetune("get-adapter", "bot", tmp_path / "adapter")

    assert answer.status == 1
    assert "adapter_model.safetensors" in answer.stderr
    assert not (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_report_of_rejected_run_is_that_of_the_gate(
    finetune: CommandLine, namespace: ClientNamespace, endpoint: S3Server, tmp_path: Path
) -> None:
    folder = "s3://results/gated/.rejected/0123456789ab"
    endpoint.put(f"{folder}/report.html", b"rejected")
    namespace.create_job()
    namespace.write_status({"phase": "Failed", "reason": "EvaluationGate", "logURI": f"{folder}/run.log"})

    assert finetune("report", "bot", "--no-open").stdout == "report-bot.html\n"
    assert (tmp_path / "report-bot.html").read_bytes() == b"rejected"


def test_report_of_run_is_written_to_a_file(
    finetune: CommandLine, namespace: ClientNamespace, endpoint: S3Server, tmp_path: Path
) -> None:
    _write_result(namespace, endpoint, "s3://results/report")

    assert finetune("report", "bot", "--no-open").stdout == "report-bot.html\n"
    assert (tmp_path / "report-bot.html").read_bytes() == FILES["report.html"]
    assert finetune("report", "s3://results/report", "--file", tmp_path / "mine.html").status == 0
    assert (tmp_path / "mine.html").read_bytes() == FILES["report.html"]


def test_report_of_schedule_and_sweep_are_read_from_their_address(
    finetune: CommandLine, namespace: ClientNamespace, endpoint: S3Server, tmp_path: Path
) -> None:
    endpoint.put("s3://results/owner/page.html", b"<html>owner</html>")
    for kind in ("schedule", "sweep"):
        path = Path(__file__).parents[2] / "manifests" / "samples" / f"{kind}.yaml"
        finetune("submit", path, "--name", "owner")
        assert "no report yet" in finetune("report", f"{kind}/owner").stderr
        status = {"status": {"reportURI": "s3://results/owner/page.html"}}
        namespace.call("PATCH", namespace.path(f"finetune{kind}s", "owner", "status"), status)

        assert finetune("report", f"{kind}/owner", "--no-open").stdout == "report-owner.html\n"
        assert (tmp_path / "report-owner.html").read_bytes() == b"<html>owner</html>"


def test_report_without_keys_is_one_line(
    finetune: CommandLine, namespace: ClientNamespace, endpoint: S3Server, tmp_path: Path
) -> None:
    _write_result(namespace, endpoint, "s3://results/keys")
    environment = {"AWS_ACCESS_KEY_ID": "expired", "AWS_SECRET_ACCESS_KEY": "wrong"}

    answer = run_finetune("report", "bot", "--no-open", environment=environment)

    assert answer.status == 1
    assert answer.stderr.count("\n") == 1
    assert "s3://results/keys" in answer.stderr


def test_logs_of_run_without_pods_are_read_from_the_store(
    finetune: CommandLine, namespace: ClientNamespace, endpoint: S3Server
) -> None:
    files = {**FILES, "run.log": b"first\x1b[31m\nlast \xe2\x80\xae"}
    _write_result(namespace, endpoint, "s3://results/logs", files=files)

    answer = finetune("logs", "bot")

    assert (answer.status, answer.stdout) == (0, "first[U+001B][31m\nlast [U+202E]\n")


def test_list_from_store_adds_results_whose_runs_are_gone(
    finetune: CommandLine, namespace: ClientNamespace, endpoint: S3Server
) -> None:
    _write_result(namespace, endpoint, "s3://results/list/bot", job="team/bot")
    publish_result(endpoint, "s3://results/list/old", job="team/old")

    runs = json.loads(finetune("list", "--from", "s3://results/list/", "-o", "json").stdout)

    assert [(run["name"], run["source"]) for run in runs] == [("bot", "cluster"), ("old", "store")]
    assert runs[1]["adapterURI"] == "s3://results/list/old"


def test_compare_shows_settings_metrics_and_paired_change(
    finetune: CommandLine, namespace: ClientNamespace, endpoint: S3Server
) -> None:
    uris = [f"s3://results/compare/{name}" for name in ("a", "b")]
    for index, uri in enumerate(uris):
        rows = build_rows([2.0 - index / 2 + row / 100 for row in range(40)])
        publish_result(
            endpoint, uri, {**FILES, "evaluation.jsonl": rows}, job=f"team/{uri[-1]}", validation_digest="sha256:v",
            metrics={"evalLoss": 2.0 - index / 2}, config={"training": {"learningRate": 0.1 * (index + 1)}},
        )  # fmt: skip

    answer = finetune("compare", *uris)
    data = json.loads(finetune("compare", *uris, "-o", "json").stdout)

    assert answer.status == 0
    assert "training.learningRate" in answer.stdout
    assert data["settings"] == [{"field": "training.learningRate", "first": "0.1", "second": "0.2"}]
    assert yaml.safe_load(finetune("compare", *uris, "-o", "yaml").stdout) == data
    row = next(row for row in data["metrics"] if row["name"] == "evalLoss")
    assert row["verdict"] == "better"
    assert row["change"]["samples"] == data["commonRows"] == 40
    assert "\N{MINUS SIGN}0.500" in answer.stdout


def test_run_without_result_says_its_phase(finetune: CommandLine, namespace: ClientNamespace, tmp_path: Path) -> None:
    namespace.create_job()

    answer = finetune("get-adapter", "bot", tmp_path / "x")

    assert (answer.status, answer.stderr) == (1, "error: bot has no published result: it is Pending\n")
