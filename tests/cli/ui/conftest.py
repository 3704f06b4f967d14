"""Fixtures: a real API server and a real S3 server full of runs, `finetune ui` as a process, and a real browser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from tests.support.operator.api_server import ADMIN_TOKEN, run_api_server
from tests.support.trainer import s3_server
from tests.support.trainer.s3_server import S3Server
from tests.support.ui.browser import find_chromium
from tests.support.ui.cluster_objects import (
    NAMESPACE,
    Body,
    build_runs,
    build_schedule,
    build_sweep,
    create_event,
    create_objects,
)
from tests.support.ui.outside import Outside
from tests.support.ui.published_results import make_hostile_report, publish
from tests.support.ui.ui_process import UiServer, run_ui, write_kubeconfig


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Return a store."""
    yield from s3_server.serve(tmp_path_factory.mktemp("s3"))


@pytest.fixture(scope="session")
def outside() -> Iterator[Outside]:
    """Return a server that no page may reach."""
    outside = Outside()
    with outside.run():
        yield outside


@pytest.fixture(scope="session")
def digests(s3: S3Server, outside: Outside) -> dict[str, str]:
    """Publish the results of three runs, one of them hostile, and of one whose FineTuneJob is gone."""
    root = f"s3://results/{NAMESPACE}"
    metrics = {"evalLoss": 1.42, "accuracy": 0.83}
    hostile_report = make_hostile_report(outside.origin)
    s3.put("s3://results/nightly/champion.json.html", hostile_report)
    return {
        "bot-best": publish(s3, f"{root}/bot-best", f"{NAMESPACE}/bot-best", metrics=metrics),
        "bot-second": publish(
            s3, f"{root}/bot-second", f"{NAMESPACE}/bot-second", shift=0.2, metrics={"evalLoss": 1.62}
        ),
        "hostile": publish(s3, f"{root}/hostile", "<b>team</b>/<script>alert(6)</script>", hostile_report),
        "deleted": publish(s3, f"{root}/deleted", f"{NAMESPACE}/deleted", metrics=metrics),
    }


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3: S3Server, digests: dict[str, str]) -> Iterator[str]:
    """Return the URL of an API server with 200 runs, a schedule and a sweep."""
    with run_api_server(tmp_path_factory.mktemp("api-server")) as server:
        runs = [_add_digest(*each, digests) for each in build_runs(s3.endpoint)]
        asyncio.run(create_objects(server, [*runs, build_schedule(s3.endpoint), build_sweep(s3.endpoint)]))
        asyncio.run(create_event(server, "hostile"))
        yield server


def _add_digest(manifest: Body, status: Body, digests: dict[str, str]) -> tuple[Body, Body]:
    name = manifest["metadata"]["name"]
    if "result" in status:
        status["result"]["digest"] = digests[name]
    return manifest, status


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    """Return an administrator's kubeconfig."""
    return write_kubeconfig(tmp_path_factory.mktemp("kubeconfig"), cluster, ADMIN_TOKEN)


@pytest.fixture(scope="session")
def ui(kubeconfig: Path, s3: S3Server) -> Iterator[UiServer]:
    """Return a running `finetune ui`."""
    history = f"s3://results/{NAMESPACE}"
    with run_ui(["--kubeconfig", kubeconfig, "--endpoint", s3.endpoint, "--history", history]) as server:
        yield server


@pytest.fixture(scope="module")
def browser(cluster: str) -> Iterator[Browser]:
    """Return Debian's Chromium. While it is open, its loop occupies the thread, so the cluster is started before."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()
