"""Tests of `sweep` against a real API server."""

from __future__ import annotations

import pytest
from tests.support.cli.cluster import Body, ClusterNamespace
from tests.support.cli.command import CommandLine
from tests.support.operator.sweeps import DIGEST, build_sweep

pytestmark = [pytest.mark.cluster]


def build_trial(number: int, rate: float, **fields: object) -> Body:
    base = {"name": f"lr-{number}", "configuration": number, "parameters": {"learningRate": rate}, "seed": 42}
    return {**base, "created": True, "gpuSeconds": 4000, **fields}


STATUS = {
    "phase": "Complete",
    "reason": "Completed",
    "counts": {"total": 3, "complete": 1, "cut": 1, "failed": 1, "finished": "3/3"},
    "trials": [
        build_trial(1, 1e-4, phase="Complete", value=1.25),
        build_trial(2, 3e-4, phase="Suspended", cutAtStep=20, steps=[{"step": 20, "evalLoss": 1.75}]),
        build_trial(3, 1e-3, phase="Failed", reason="OutOfMemory"),
    ],
    "best": {
        "name": "lr-1", "configuration": 1, "parameters": {"learningRate": 1e-4}, "value": 1.25,
        "adapterURI": "s3://bucket/lr/lr-1", "digest": DIGEST, "verdict": "Inconclusive",
        "message": "Chance may\u202e explain it.",
    },
    "reportURI": "s3://bucket/lr/report.html",
}  # fmt: skip


@pytest.fixture
def sweep(namespace: ClusterNamespace) -> ClusterNamespace:
    """Return the namespace with the sweep `lr`."""
    namespace.create("finetunesweeps", build_sweep("lr", namespace.name), STATUS)
    return namespace


def test_sweep_shows_trials_best_and_verdict(admin: CommandLine, sweep: ClusterNamespace) -> None:
    assert sweep
    answer = admin("sweep", "lr")
    assert answer.status == 0
    head, _, table = answer.stdout.partition("\n\n")
    fields = dict(line.split(maxsplit=1) for line in head.splitlines())
    assert fields["phase"] == "Complete (Completed)"
    assert fields["trials"] == "3/3 ended: 1 complete, 1 cut, 1 failed"
    assert fields["best"] == "lr-1: learningRate 0.0001"
    assert fields["verdict"] == "Inconclusive Chance may[U+202E] explain it."
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert rows == [
        "TRIAL PARAMETERS SEED STATE EVALLOSS GPU TIME",
        "lr-1 learningRate 0.0001 42 Complete * 1.25 1h06m",
        "lr-2 learningRate 0.0003 42 cut at step 20 1.75 1h06m",
        "lr-3 learningRate 0.001 42 Failed (OutOfMemory) 1h06m",
    ]


def test_sweep_list_has_one_line_for_each(admin: CommandLine, sweep: ClusterNamespace) -> None:
    assert sweep
    rows = [line.split() for line in admin("sweep", "list").stdout.splitlines()]
    assert rows[1:] == [["lr", "Complete", "Completed", "3/3", "lr-1", "1.25", "Inconclusive"]]


def test_sweep_without_status_is_pending(admin: CommandLine, namespace: ClusterNamespace) -> None:
    namespace.create("finetunesweeps", build_sweep("lr", namespace.name))
    lines = admin("sweep", "lr").stdout.splitlines()
    assert [line.split() for line in lines[:2]] == [["sweep", "lr"], ["phase", "Pending", "(TrialsPending)"]]
