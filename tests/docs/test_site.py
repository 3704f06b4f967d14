"""The documentation site builds without warnings, loads nothing from other hosts, and has a complete search."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
NOT_LOADED = {"canonical", "prev", "next"}
"""Relations of links that a browser does not load."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site. Every link, anchor and page outside of the navigation that is wrong ends the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


class _LoadedResources(HTMLParser):
    """Collects the addresses that a browser loads with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("rel") not in NOT_LOADED and (address := values.get(LOADED.get(tag, ""))):
            self.addresses.append(address)


def test_site_pages_load_only_their_own_files(site: Path) -> None:
    for page in site.rglob("*.html"):
        resources = _LoadedResources()
        resources.feed(page.read_text())
        assert [address for address in resources.addresses if re.match(r"(https?:)?//", address)] == [], page
        # The theme loads Mermaid from a public server for pages with such diagrams.
        assert not re.search(r'class="[^"]*mermaid', page.read_text()), page


NO_PROSE = {"pre", "code", "script", "style", "title", "h1", "h2", "h3", "nav"}


class _Prose(HTMLParser):
    """Collects the text of a page, without its code and headings."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._depth += tag in NO_PROSE

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag in NO_PROSE

    def handle_data(self, data: str) -> None:
        self.text += "" if self._depth else data


def test_site_lists_and_tables_are_rendered(site: Path) -> None:
    """MkDocs needs four spaces for what is nested in a list, where GitHub needs two or three."""
    for page in site.rglob("*.html"):
        prose = _Prose()
        prose.feed(page.read_text())
        assert re.findall(r"^(?:\||- |\d+\. ).*", prose.text, re.MULTILINE) == [], page


def test_site_search_covers_every_page(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    indexed = {entry["location"].partition("#")[0] for entry in entries}
    pages = {page.parent.relative_to(site).as_posix() + "/" for page in site.rglob("index.html")} - {"./"}
    assert pages <= indexed


def test_site_has_samples_to_download(site: Path) -> None:
    sample = "manifests/samples/quickstart.yaml"
    assert (site / sample).read_bytes() == (ROOT / sample).read_bytes()
