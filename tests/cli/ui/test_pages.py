"""The pages in a real browser, over a real cluster and a real store with 200 runs."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, expect
from tests.support.operator.api_server import ADMIN_TOKEN, OPERATOR_TOKEN
from tests.support.trainer.s3_server import S3Server
from tests.support.ui.browser import Tab, open_tab
from tests.support.ui.cluster_objects import NAMESPACE, set_live_step
from tests.support.ui.outside import Outside
from tests.support.ui.ui_process import UiServer, run_ui, write_kubeconfig

from finetune_cli.ui.source import LIST_SECONDS

pytestmark = pytest.mark.browser

PATHS = (
    "/",
    "/?text=no-such-run",
    "/runs/support/bot-best",
    "/runs/support/live",
    "/runs/support/hostile",
    "/runs/support/hostile/log",
    "/runs/support/no-such-run",
    "/compare",
    "/compare?run=support/bot-best&run=support/bot-second",
    "/schedules",
    "/schedules/support/nightly",
    "/sweeps",
    "/sweeps/support/rates",
    "/history",
    "/history/result?uri=s3://results/support/hostile",
    "/history/log?uri=s3://results/support/hostile",
)
SCREENS = {
    "wide, light": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "narrow, dark": {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def shared_tab(browser: Browser, ui: UiServer) -> Iterator[Tab]:
    """Return a wide tab for several tests."""
    with open_tab(browser, ui) as tab:
        yield tab


@pytest.fixture
def tab(shared_tab: Tab) -> Tab:
    """Return a tab that has not recorded anything yet."""
    shared_tab.incidents.clear()
    shared_tab.requests.clear()
    return shared_tab


def run_in_thread(work: Coroutine[None, None, None]) -> None:
    """Run a coroutine, while the loop of the browser occupies this thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


@pytest.mark.parametrize("screen", SCREENS)
def test_pages_hostile_objects_fit_and_execute_nothing(browser: Browser, ui: UiServer, screen: str) -> None:
    with open_tab(browser, ui, **SCREENS[screen]) as tab:
        for path in PATHS:
            page = tab.open(path)
            assert tab.find_overflow() == [], path
            assert page.locator("h1").count() == 1, path
            assert page.locator("main img, main script, main iframe, main svg[onload], main b").count() == 0, path
            if path.endswith("no-such-run"):
                tab.incidents.clear()  # the console shows the status 404
            tab.check()


def test_pages_dark_scheme_changes_background(browser: Browser, ui: UiServer) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        with open_tab(browser, ui, color_scheme=scheme) as tab:
            grounds.add(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_runs_filters_select_and_links_open(tab: Tab) -> None:
    page = tab.open("/")
    expect(page.locator("#runs tbody tr")).to_have_count(100)
    page.get_by_role("link", name="Next page").click()
    expect(page.get_by_role("link", name="Previous page")).to_be_visible()
    expect(page.locator("#runs tbody tr")).to_have_count(100)
    page.get_by_label("Phase").select_option("Failed")
    expect(page.locator("#runs tbody tr")).to_have_count(24)
    page.get_by_role("searchbox").fill("base-3b bot-0")
    expect(page.locator("#runs tbody tr")).to_have_count(2)
    assert "phase=Failed" in page.url
    page.reload()
    expect(page.locator("#runs tbody tr")).to_have_count(2)
    name = page.locator("#runs tbody tr a").first.inner_text()
    page.locator("#runs tbody tr a").first.click()
    expect(page.locator("h1")).to_have_text(name)
    tab.check()


def test_run_progress_changes_without_reload_and_keeps_focus(tab: Tab, cluster: str) -> None:
    page = tab.open("/runs/support/live")
    page.locator("#log").focus()
    page.evaluate("window.marker = 1")
    for step in (160, 200):
        run_in_thread(set_live_step(cluster, step))
        expect(page.locator("#progress dl")).to_contain_text(f"{step} of 400")
    assert page.locator("#progress progress").get_attribute("value") == "50"
    expect(page.locator("#announcer")).to_contain_text("50%")
    assert page.get_by_role("img", name="Loss over optimizer steps").count() == 1
    assert page.evaluate("window.marker") == 1
    assert page.evaluate("document.activeElement.id") == "log"
    tab.check()


def test_pages_keyboard_reaches_everything_and_shows_focus(tab: Tab) -> None:
    page = tab.open("/?text=bot-best")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["y"] >= 0  # type: ignore[index]  # it is visible
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name || 'x'"))
        assert style != "none" or reached[-1] in ("x", "content"), reached[-1]
    assert {"text", "phase", "sort-loss", "tick-support-bot-best", "runs-support-bot-best"} <= set(reached)
    tab.check()


def test_compare_two_ticked_runs_shows_paired_change(tab: Tab) -> None:
    page = tab.open("/?text=bot-&phase=Complete&sort=name")
    page.get_by_label("Search").fill("results/support/bot-")
    expect(page.locator("#runs tbody tr")).to_have_count(2)
    page.get_by_label("Compare bot-best").check()
    page.get_by_label("Compare bot-second").check()
    page.get_by_role("button", name="Compare two runs").click()
    row = page.get_by_role("row", name="Validation loss")
    expect(row).to_contain_text("worse")
    expect(row).to_contain_text("+0.200")
    expect(page.locator("main")).to_contain_text("60 validation rows")
    tab.check()


def test_report_hostile_page_cannot_run_or_load_anything(tab: Tab, outside: Outside) -> None:
    page = tab.open("/runs/support/hostile/report")
    expect(page.locator("h1")).to_have_text("Hostile report")
    page.wait_for_timeout(1200)  # the report asks for another page after a second
    assert page.url.endswith("/runs/support/hostile/report")
    assert page.title() == ""
    assert [each for each in tab.incidents if each.startswith(("dialog", "error"))] == []
    page.get_by_role("button", name="Send").click()
    page.wait_for_timeout(200)
    assert outside.requests == []


def test_report_of_schedule_and_result_are_isolated(tab: Tab) -> None:
    for path in ("/schedules/support/nightly/report", "/history/report?uri=s3://results/support/deleted"):
        response = tab.page.goto(tab.ui.origin + path)
        assert response
        assert response.status == 200
        assert response.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    expect(tab.page.locator("h1")).to_contain_text("better in some ways than the base model")


def test_sweep_and_schedule_show_charts_and_decisions(tab: Tab) -> None:
    page = tab.open("/sweeps/support/rates")
    assert page.locator("svg[role=img]").count() == 2
    assert page.locator("#trials tbody tr th").first.inner_text().startswith("rates-5")
    page = tab.open("/schedules/support/nightly")
    assert page.get_by_role("img", name="Validation loss over runs").count() == 1
    expect(page.locator("#runs")).to_contain_text("NotBetter")
    tab.check()


def test_history_lists_result_without_finetunejob(tab: Tab) -> None:
    page = tab.open("/history")
    page.get_by_role("link", name="deleted", exact=True).click()
    expect(page.locator("#result-title")).to_be_visible()
    page.get_by_role("link", name="Log").click()
    expect(page.locator(".log")).to_contain_text("<script>alert('log')</script> [U+001B][31mred")
    tab.check()


def test_pages_without_script_refresh_themselves(browser: Browser, ui: UiServer) -> None:
    with open_tab(browser, ui, java_script_enabled=False) as tab:
        page = tab.open("/?phase=Failed")
        assert page.locator("#runs tbody tr").count() == 24
        assert page.locator("noscript meta[http-equiv=refresh]").count() + page.content().count("refresh") >= 1
        assert page.get_by_role("button", name="Apply").is_visible()


def test_pages_missing_rights_are_one_line_and_history_works(
    cluster: str, s3: S3Server, digests: dict[str, str], tmp_path: Path
) -> None:
    kubeconfig = write_kubeconfig(tmp_path, cluster, OPERATOR_TOKEN)
    history = f"s3://results/{NAMESPACE}"
    with run_ui(["--kubeconfig", kubeconfig, "--endpoint", s3.endpoint, "--history", history]) as server:
        page = read_page(server, "/")
        assert page.count('class="problem"') == 1
        assert "finetune-operator-view" in page
        assert f"{len(digests)} of 4 results" in read_page(server, "/history")


def test_pages_many_readers_share_lists_of_the_cluster(ui: UiServer, cluster: str) -> None:
    start, before = time.monotonic(), count_lists(cluster)
    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda _: read_page(ui, "/"), range(24)))
    assert all("200 runs" in page for page in pages)
    assert count_lists(cluster) - before <= 1 + (time.monotonic() - start) / LIST_SECONDS


def count_lists(cluster: str) -> int:
    """Return how often the FineTuneJobs were listed since the API server was started."""
    request = Request(f"{cluster}/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    with urlopen(request, context=ssl._create_unverified_context()) as response:
        lines = response.read().decode().splitlines()
    counted = [
        line
        for line in lines
        if line.startswith("apiserver_request_total{") and 'resource="finetunejobs"' in line and 'verb="LIST"' in line
    ]
    assert counted
    return sum(int(float(line.rpartition(" ")[2])) for line in counted)


def read_page(ui: UiServer, path: str) -> str:
    """Return a page without a browser."""
    request = Request(ui.origin + path, headers={"Cookie": ui.cookie})
    with urlopen(request, timeout=30) as response:
        return str(response.read().decode())
