"""A tab of a real browser that records everything that a page must not do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Dialog, Page
from tests.support.ui.ui_process import UiServer

from local_cluster.debian import find_browser
from local_cluster.errors import UserError

_COUNT_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


def find_chromium() -> str:
    """Return the path of Chromium. Fails with what to do if it is missing."""
    try:
        return find_browser()
    except UserError as error:
        raise AssertionError(str(error)) from None


class Tab:
    """A tab, with what its pages have done: dialogs, errors, violations of the policy, and requests."""

    def __init__(self, page: Page, ui: UiServer) -> None:
        self.page = page
        self.ui = ui
        self.incidents: list[str] = []
        self.requests: list[str] = []
        page.add_init_script(_COUNT_VIOLATIONS)
        page.on("dialog", self._record_dialog)
        page.on("pageerror", lambda error: self.incidents.append(f"error: {error}"))
        page.on("console", lambda message: self._record_console(message.type, message.text))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: str) -> Page:
        """Open a page of the server."""
        self.page.goto(self.ui.origin + path)
        return self.page

    def check(self) -> None:
        """Assert that nothing has happened that must not, and that all requests went to this server."""
        assert self.incidents == []
        assert self.page.evaluate("window.violations") == []
        assert [url for url in self.requests if not url.startswith(self.ui.origin + "/")] == []

    def find_overflow(self) -> list[str]:
        """Return the elements that make the page wider than the window."""
        width = self.page.evaluate("document.documentElement.clientWidth")
        if self.page.evaluate("document.documentElement.scrollWidth") <= width:
            return []
        found: list[str] = self.page.evaluate(
            """width => [...document.querySelectorAll("body *")]
                .filter((each) => each.getBoundingClientRect().right > width + 1)
                .map((each) => each.outerHTML.slice(0, 150))""",
            width,
        )
        return found or ["the page"]

    def _record_dialog(self, dialog: Dialog) -> None:
        self.incidents.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _record_console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.incidents.append(f"console: {text}")


@contextmanager
def open_tab(browser: Browser, ui: UiServer, **options: Any) -> Iterator[Tab]:
    """Open a tab that has the token, in a browser profile of its own."""
    context = browser.new_context(**options)
    context.set_default_timeout(10_000)
    tab = Tab(context.new_page(), ui)
    try:
        tab.page.goto(ui.url)
        tab.page.wait_for_url(ui.origin + "/")
        yield tab
    finally:
        context.close()
