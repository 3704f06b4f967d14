"""The page as a reader sees it."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest
from lxml import html
from tests.trainer.report import hostile, runs

from finetune_trainer.records.evaluation import EvaluationReport, LengthBin, LossPoint, OverfittingResult
from finetune_trainer.reporting.page import render_page

SECTIONS = ["better", "trust", "data", "samples", "curves", "next", "made"]
DIRECTING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LOADING = {
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


def read(text: str) -> html.HtmlElement:
    return html.document_fromstring(text)


def seen(element: html.HtmlElement) -> str:
    return re.sub(r"\s+([.,:;)])", r"\1", " ".join(" ".join(element.itertext()).split()))


@pytest.fixture(scope="module")
def full() -> html.HtmlElement:
    return read(render_page(runs.manifest(), runs.full(), runs.FACTS))


@pytest.fixture(scope="module")
def minimal() -> html.HtmlElement:
    return read(render_page(runs.manifest(), runs.minimal(), runs.FACTS))


@pytest.mark.parametrize("run", ["full", "minimal"])
def test_questions_are_answered_in_order(run: str, request: pytest.FixtureRequest) -> None:
    document = request.getfixturevalue(run)
    assert [each.get("id") for each in document.iter("section")] == SECTIONS
    assert [link.get("href") for link in document.find(".//nav").iter("a")] == [f"#{each}" for each in SECTIONS]


SEEN = {
    "headline": ("h1", "Not published: better in some ways than the base model, worse in others"),
    "better names": (
        "#better",
        "Better: Validation loss, Perplexity, Accuracy. Worse: BLEU. No clear change: Macro F1.",
    ),
    "measure": (
        "#better",
        "Accuracy higher is better 0.610 0.570 to 0.650 0.830 0.790 to 0.870 +0.220 +0.180 to +0.260",
    ),
    "confusion of the tuned model": ("#better", "billing 150 12 8 3"),
    "confusion of the base model": ("#better", "billing 90 50 30 3"),
    "overfitting": ("#trust", "Overfitted The validation loss rose from step 500 on"),
    "gap": ("#trust", "+0.620. Lowest validation loss at step 500. It rose from step 600 on"),
    "forgetting": ("#trust", "general text, which the data is not: base 18.20 (17.70 to 18.70), tuned 18.40"),
    "folds": ("#trust", "Validation loss: 1.450 ± 0.050 over 3 folds"),
    "each fold": ("#trust", "2 1.500 +0.050"),
    "gate": ("#trust", "bleu at least 30 24.60 no"),
    "bias": ("#trust", "gender swap 0.110 0.090 to 0.130 0.200 0.180 to 0.220 +0.090 +0.060 to +0.120 worse"),
    "groups": ("#trust", "gender female 210"),
    "bias note": ("#trust", "religion: 4 rows are too few"),
    "missing": ("#trust", "rougeL: the task is classification"),
    "rows": ("#data", "Of 12,000 rows read, 10,423 were trained on: 2,345,678 tokens, of which 1,111,222 were learnt."),
    "rejected": ("#data", "overlength longer than the longest example allowed 690 5.8 %"),
    "sensitive": ("#data", "email 44"),
    "example": ("#data", "invalid s3://data/support/a.jsonl:99"),
    "sample": ("#samples", "Where is my parcel? Order 4711."),
    "best step": ("#curves", "best step: 500"),
    "gap opens": ("#curves", "gap opens: 600"),
    "curve in words": ("#curves", "The validation loss goes from 1.865 at step 100 to"),
    "advice": ("#next", "Train only to about step 500 of 900 (training.maxSteps: 500)"),
    "setting": ("#made", "Learning rate 2e-05, linear"),
    "energy": ("#made", "Energy of the GPUs 1.53 kWh, by the counters of 2 GPUs (NVML)"),
    "input": ("#made", "s3://data/support/a.jsonl 5.0 MB sha256:bbbb"),
    "config": ("#made", "maxLength: 1024"),
    "version": ("#made", "torch 2.14.1"),
}


@pytest.mark.parametrize(("place", "text"), SEEN.values(), ids=SEEN)
def test_a_reader_finds(full: html.HtmlElement, place: str, text: str) -> None:
    (element,) = full.iter("h1") if place == "h1" else [full.get_element_by_id(place[1:])]
    assert text in seen(element)


SAID_WITHOUT = {
    "headline": "Nothing was measured",
    "overfitting": "Overfitting unknown",
    "bias": "Bias not measured",
    "gate": "No gate was set",
    "samples": "No samples were taken.",
    "losses": "No losses were recorded.",
    "energy": "Energy of the GPUs not measured",
}


@pytest.mark.parametrize("text", SAID_WITHOUT.values(), ids=SAID_WITHOUT)
def test_what_is_not_known_is_said(minimal: html.HtmlElement, text: str) -> None:
    assert text in seen(minimal)


def test_the_account_adds_up(full: html.HtmlElement) -> None:
    (table,) = (each for each in full.iter("table") if "every row" in seen(each.find("caption")))
    counts = [int(row.findall("td")[0].text.replace(",", "")) for row in table.find("tbody")]
    total = int(table.find("tfoot").find(".//td").text.replace(",", ""))
    assert sum(counts) == total == 12_000


def test_rows_that_are_lost_are_not_hidden() -> None:
    report = runs.DATASET.model_copy(update={"kept": 10_000})
    assert "unaccounted a bug; please report it 423" in seen(
        read(render_page(runs.manifest(dataset=report), runs.minimal(), runs.FACTS))
    )


def test_nothing_is_loaded_or_run(full: html.HtmlElement) -> None:
    assert not LOADING & {element.tag for element in full.iter()}
    for element in full.iter():
        assert not [name for name in element.attrib if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert element.get(name, "#").startswith("#")
    (style,) = full.iter("style")
    assert not re.search(r"url\(|@import|expression", style.text)
    (policy,) = full.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_it_can_be_read_aloud(full: html.HtmlElement) -> None:
    for picture in full.xpath("//svg[not(ancestor::svg)]"):
        if picture.get("aria-hidden") != "true":
            named = picture.get("aria-labelledby").split()
            assert picture.get("role") == "img"
            assert [full.get_element_by_id(each).tag for each in named] == ["title", "desc"]
    assert all(seen(table.find("caption")) for table in full.iter("table"))
    levels = [int(element.tag[1]) for element in full.iter("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert levels.count(1) == 1
    identifiers = Counter(full.xpath("//@id"))
    assert set(identifiers.values()) == {1}


def shape(document: html.HtmlElement) -> Counter[tuple[object, ...]]:
    return Counter((element.tag, *sorted(element.attrib)) for element in document.iter())


@pytest.mark.parametrize("text", hostile.TEXTS.values(), ids=hostile.TEXTS)
def test_text_stays_text(text: str) -> None:
    written = render_page(hostile.record(text), hostile.evaluation(text), runs.FACTS)
    written.encode()
    assert len(written) < 200_000
    assert not DIRECTING.search(written)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", written)
    plain = render_page(hostile.record("x"), hostile.evaluation("x"), runs.FACTS)
    assert shape(read(written)) == shape(read(plain))


HOW_SHOWN = {
    "script": ("<script>alert(1)</script>", "<script>alert(1)</script>"),
    "override": ("\u202egnp.exe", "[U+202E]gnp.exe"),
    "nul": ("a\x00b", "a[U+0000]b"),
    "half a character": ("a\ud800b", "a[U+D800]b"),
    "family": ("\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f467"),
    "long": ("y" * 2**20, "y" * 1500 + " … [shortened, 1,048,576 characters in all]"),
}


@pytest.mark.parametrize(("text", "expected"), HOW_SHOWN.values(), ids=HOW_SHOWN)
def test_a_sample_is_shown_as(text: str, expected: str) -> None:
    evaluation = hostile.evaluation("x")
    sample = evaluation.samples[0].model_copy(update={"tuned": text})
    changed = evaluation.model_copy(update={"samples": [sample]})
    document = read(render_page(runs.manifest(), changed, runs.FACTS))
    (shown,) = document.xpath("//div[@class='tuned']/pre")
    assert (shown.text_content().removeprefix("\n"), shown.get("dir")) == (expected, "auto")


FINE = OverfittingResult(verdict="none", message="fine")
ODD = {
    "one loss": EvaluationReport(overfitting=FINE, training_losses=[LossPoint(step=0, loss=0)]),
    "equal losses": EvaluationReport(
        overfitting=FINE, validation_losses=[LossPoint(step=each, loss=2) for each in (1, 2)]
    ),
    "one length": EvaluationReport(overfitting=FINE, lengths=[LengthBin(start=0, end=1, rows=1)]),
    "no rows in any length": EvaluationReport(overfitting=FINE, lengths=[LengthBin(start=0, end=1, rows=0)]),
    "step out of the curve": EvaluationReport(
        overfitting=FINE.model_copy(update={"best_step": 900}), training_losses=[LossPoint(step=1, loss=1)]
    ),
}


@pytest.mark.parametrize("evaluation", ODD.values(), ids=ODD)
def test_little_is_drawn_too(evaluation: EvaluationReport) -> None:
    assert "nan%" not in render_page(runs.manifest(), evaluation, runs.FACTS)


def test_more_than_can_be_read_is_counted() -> None:
    evaluation = runs.full()
    many = evaluation.model_copy(update={"samples": evaluation.samples * 20})
    inputs = runs.manifest().inputs * 120
    document = read(render_page(runs.manifest(inputs=inputs), many, runs.FACTS))
    assert len(document.xpath("//article")) == 20
    assert "And 20 more in evaluation.json" in seen(document)
    assert "And 70 more in manifest.json" in seen(document)
