"""A schedule and a sweep with real pods: runs, comparison with the champion, alias, reports."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.cluster.cluster_harness import ClusterHarness, dump_object, find_condition, open_cluster_harness

from finetune_operator.api import API_VERSION
from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.api.sweep import SWEEP_KIND

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from local_cluster.cluster import Cluster

Manifest = dict[str, Any]
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture
def flow(cluster: Cluster, operator: str, tiny_model: Path) -> Iterator[ClusterHarness]:
    """Return a namespace and a bucket of its own."""
    with open_cluster_harness(cluster, tiny_model) as harness:
        yield harness


def _build_rows(answer: str, verb: str = "Tell", count: int = 24) -> bytes:
    """Return rows whose prompts differ from those of the validation rows, which would be dropped as leaked."""
    turns = [
        ({"role": "user", "content": f"{verb} {n}"}, {"role": "assistant", "content": answer}) for n in range(count)
    ]
    return "\n".join(json.dumps({"messages": list(pair)}) for pair in turns).encode()


def _build_template(flow: ClusterHarness) -> Manifest:
    """Return a template that trains on a folder and is measured on rows with the answer `Gladly.`."""
    flow.s3.put_object(Bucket=flow.bucket, Key="held-out.jsonl", Body=_build_rows("Gladly.", "Say"))
    spec = json.loads(flow.build_manifest("template", source="s3://{bucket}/growing/", steps=6))["spec"]
    spec["dataset"]["validation"] = {"sources": [{"uri": f"s3://{flow.bucket}/held-out.jsonl"}]}
    spec["dataset"]["preparation"] = {"deduplicate": "none"}
    spec["training"]["learningRate"] = 5e-3
    return {"spec": spec}


def _wait_for(flow: ClusterHarness, kind: str, name: str, is_done: Callable[[Manifest], object]) -> Manifest:
    deadline = time.monotonic() + 300
    while not is_done(status := flow.get_object(kind, name).get("status", {})):
        failed_runs = [run["message"] for run in status.get("runs", ()) if run.get("decision") == "RunFailed"]
        assert not failed_runs, f"{name}: {failed_runs}"
        assert time.monotonic() < deadline, f"{name}: {status}"
        time.sleep(2)
    return status


def _run_now(flow: ClusterHarness, name: str) -> None:
    patch = {"spec": {"runAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}}
    flow.kubectl("patch", "fts", name, "--type=merge", f"--patch={json.dumps(patch)}")


def test_schedule_with_better_data_promotes_second_run(flow: ClusterHarness) -> None:
    alias = f"s3://{flow.bucket}/champions/bot.json"
    spec = {"template": _build_template(flow), "alias": {"uri": alias}}
    flow.s3.put_object(Bucket=flow.bucket, Key="growing/1.jsonl", Body=_build_rows("xq zv!"))
    flow.create_object(dump_object(API_VERSION, SCHEDULE_KIND, "bot", spec=spec))
    _run_now(flow, "bot")
    status = _wait_for(flow, "fts", "bot", lambda status: status.get("champion"))
    first = status["champion"]["run"]
    flow.s3.put_object(Bucket=flow.bucket, Key="growing/1.jsonl", Body=_build_rows("Gladly."))
    time.sleep(max(0, 61 - time.time() % 60))  # names contain the minute
    _run_now(flow, "bot")
    status = _wait_for(
        flow, "fts", "bot", lambda status: status["champion"]["run"] != first and status.get("reportURI")
    )
    (change,) = status["runs"][0]["changes"]
    assert (change["metric"], change["high"] < 0) == ("evalLoss", True)
    assert find_condition(status, "Promoted")["reason"] == "Promoted"
    stored = json.loads(flow.read_object("champions/bot.json"))
    assert (stored["run"], stored["predecessor"]["run"]) == (status["champion"]["run"], first)
    assert first.encode() in flow.read_object("champions/bot.html")


def test_sweep_ranks_trials_and_writes_report(flow: ClusterHarness) -> None:
    flow.s3.put_object(Bucket=flow.bucket, Key="growing/1.jsonl", Body=_build_rows("Gladly."))
    spec = {
        "template": _build_template(flow),
        "parameters": {"learningRate": {"values": [1e-5, 1e-2]}},
        "maxParallel": 2,
        "output": {"uri": f"s3://{flow.bucket}/sweeps/lr/"},
    }
    flow.create_object(dump_object(API_VERSION, SWEEP_KIND, "lr", spec=spec))
    status = _wait_for(flow, "ftsw", "lr", lambda status: status.get("phase") in ("Complete", "Failed"))
    assert (status["phase"], status["counts"]["finished"]) == ("Complete", "2/2")
    assert (status["best"]["parameters"], status["best"]["verdict"]) == ({"learningRate": 1e-2}, "Better")
    assert {"sweep.json", "best.json", "report.html"} <= flow.list_keys("sweeps/lr/")
