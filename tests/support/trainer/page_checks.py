"""Checks of HTML pages that hold for each of them."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from lxml import html

DIRECTION_MARKS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LOADING_TAGS = {
    "script",
    "link",
    "img",
    "image",
    "iframe",
    "frame",
    "object",
    "embed",
    "audio",
    "video",
    "use",
    "base",
    "form",
}


def parse_page(text: str) -> html.HtmlElement:
    return html.document_fromstring(text)


def visible_text(element: html.HtmlElement) -> str:
    return re.sub(r"\s+([.,:;)])", r"\1", " ".join(" ".join(element.itertext()).split()))


def count_elements(document: html.HtmlElement) -> Counter[tuple[object, ...]]:
    return Counter((element.tag, *sorted(element.attrib)) for element in document.iter())


def check_loads_and_runs_nothing(page: html.HtmlElement, links: set[str]) -> None:
    """Assert that the page needs nothing else, and links to these addresses and to its own parts only."""
    assert not LOADING_TAGS & {element.tag for element in page.iter()}
    for element in page.iter():
        assert not [name for name in element.attrib if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            target = element.get(name, "#")
            assert target.startswith("#") or target in links
    (style,) = page.iter("style")
    assert not re.search(r"url\(|@import|expression", style.text)
    (policy,) = page.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def check_accessible(page: html.HtmlElement) -> None:
    """Assert that screen readers find names of pictures and tables, and headings in order."""
    for picture in page.xpath("//svg[not(ancestor::svg)]"):
        if picture.get("aria-hidden") != "true":
            named = picture.get("aria-labelledby").split()
            assert picture.get("role") == "img"
            assert [page.get_element_by_id(name).tag for name in named] == ["title", "desc"]
    assert all(visible_text(table.find("caption")) for table in page.iter("table"))
    levels = [int(element.tag[1]) for element in page.iter("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert levels.count(1) == 1
    identifiers = Counter(page.xpath("//@id"))
    assert set(identifiers.values()) == {1}


def check_hostile_page(written: str, plain: str) -> None:
    """Assert that a page with a hostile text has the structure of the page with a plain one."""
    written.encode()
    assert not DIRECTION_MARKS.search(written)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", written)
    assert count_elements(parse_page(written)) == count_elements(parse_page(plain))
