"""The report page, as a reader sees it."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from lxml import html
from tests.support.trainer import hostile_texts, run_records

from finetune_trainer.contract import Task
from finetune_trainer.evaluation.forgetting import judge_forgetting
from finetune_trainer.records.evaluation import (
    BaselineRecord,
    Comparison,
    EvaluationReport,
    GeneratedAnswer,
    LengthBin,
    LossPoint,
    OverfittingResult,
    PreflightFinding,
    RowScores,
)
from finetune_trainer.reporting.card import render_card
from finetune_trainer.reporting.page import render_page

SECTIONS = ["recommendations", "comparison", "checks", "data", "samples", "curves", "settings"]
DIRECTION_MARKS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LINKED_FILES = {"run.log", "evaluation.json", "evaluation.jsonl"}
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


@pytest.fixture(scope="module")
def full() -> html.HtmlElement:
    return parse_page(
        render_page(run_records.make_manifest(), run_records.make_full_evaluation(), run_records.ADAPTER_FACTS)
    )


@pytest.fixture(scope="module")
def minimal() -> html.HtmlElement:
    return parse_page(
        render_page(run_records.make_manifest(), run_records.make_minimal_evaluation(), run_records.ADAPTER_FACTS)
    )


@pytest.mark.parametrize("run", ["full", "minimal"])
def test_page_sections_are_in_order(run: str, request: pytest.FixtureRequest) -> None:
    document = request.getfixturevalue(run)
    assert [section.get("id") for section in document.iter("section")] == SECTIONS
    assert [link.get("href") for link in document.find(".//nav").iter("a")] == [f"#{name}" for name in SECTIONS]


EXPECTED_TEXTS = {
    "headline": ("h1", "Not published: better in some ways than the base model, worse in others"),
    "better names": (
        "#comparison",
        "Better: Validation loss, Perplexity, Accuracy. Worse: BLEU. No clear change: Macro F1.",
    ),
    "measure": (
        "#comparison",
        "Accuracy accuracy, higher is better 0.610 0.570 to 0.650 0.830 0.790 to 0.870 +0.220 +0.180 to +0.260",
    ),
    "confusion of the tuned model": ("#comparison", "billing 150 12 8 3"),
    "confusion of the base model": ("#comparison", "billing 90 50 30 3"),
    "overfitting": ("#checks", "Overfitted The validation loss rose from step 500 on"),
    "gap": ("#checks", "+0.620. Lowest validation loss at step 500. It increased from step 600 on"),
    "forgetting": (
        "#checks",
        "general English text that is unrelated to the data: base 18.20 (17.70 to 18.70), tuned 18.40",
    ),
    "folds": ("#checks", "Validation loss: 1.450 ± 0.050 over 3 folds"),
    "each fold": ("#checks", "2 1.500 +0.050"),
    "gate": ("#checks", "bleu at least 30 24.60 no"),
    "bias": ("#checks", "gender swap 0.110 0.090 to 0.130 0.200 0.180 to 0.220 +0.090 +0.060 to +0.120 worse"),
    "groups": ("#checks", "gender female 210"),
    "bias note": ("#checks", "religion: 4 rows are too few"),
    "passed preflight check": ("#checks", "loss passed the trainer's loss is 2.31, the model's 2.31"),
    "preflight warning": ("#checks", "answers warning 3 of 10,423 rows: the chat template removes words, such as"),
    "rewritten rows": ("#data", 'Chat template: 3 of 10,423 rows: the chat template removes words, such as "<think>"'),
    "missing": ("#checks", "rougeL: the task is classification"),
    "rows": (
        "#data",
        "Of 12,000 rows read, 10,423 were trained on: 2,345,678 tokens, of which 1,111,222 count in the loss.",
    ),
    "rejected": ("#data", "overlength longer than the maximum length 690 5.8 %"),
    "sensitive": ("#data", "email 44"),
    "example": ("#data", "invalid s3://data/support/a.jsonl:99"),
    "sample": ("#samples", "Where is my parcel? Order 4711."),
    "best step": ("#curves", "best step: 500"),
    "gap opens": ("#curves", "gap opens: 600"),
    "curve in words": ("#curves", "The validation loss goes from 1.865 at step 100 to"),
    "advice": ("#recommendations", "Train only to about step 500 of 900 (training.maxSteps: 500)"),
    "setting": ("#settings", "Learning rate 2e-05, linear"),
    "energy": ("#settings", "Energy of the GPUs 1.53 kWh, by the counters of 2 GPUs (NVML)"),
    "input": ("#settings", "s3://data/support/a.jsonl 4.8 MiB sha256:bbbb"),
    "config": ("#settings", "maxLength: 1024"),
    "version": ("#settings", "torch 2.14.1"),
}


def test_page_headline_shows_number_of_preflight_warnings(full: html.HtmlElement, minimal: html.HtmlElement) -> None:
    (header,), (minimal_header,) = full.iter("header"), minimal.iter("header")
    assert "1 warning before the training" in visible_text(header)
    assert "before the training" not in visible_text(minimal_header)


def test_page_evaluation_without_preflight_key_is_rendered() -> None:
    content = run_records.make_full_evaluation().to_json()
    del content["preflight"]
    evaluation = EvaluationReport.model_validate_json(json.dumps(content))
    assert "Preflight checks" not in render_page(run_records.make_manifest(), evaluation, run_records.ADAPTER_FACTS)


def test_page_control_tokens_are_in_the_data_section() -> None:
    finding = PreflightFinding(check="controlTokens", status="warning", message='2 of 4 rows: "<|im_end|>" in a:1')
    evaluation = run_records.make_full_evaluation().model_copy(update={"preflight": [finding]})
    page = render_page(run_records.make_manifest(), evaluation, run_records.ADAPTER_FACTS)
    assert "Control tokens: 2 of 4 rows: &#34;&lt;|im_end|&gt;&#34; in a:1." in page


def test_page_without_rewritten_rows_does_not_mention_chat_template() -> None:
    evaluation = run_records.make_full_evaluation()
    passed = PreflightFinding(check="loss", status="passed", message="equal")
    for findings in ([], [passed]):
        page = render_page(
            run_records.make_manifest(),
            evaluation.model_copy(update={"preflight": findings}),
            run_records.ADAPTER_FACTS,
        )
        assert "Chat template:" not in page
        assert ("Preflight checks" in page) == bool(findings)


@pytest.mark.parametrize(("place", "text"), EXPECTED_TEXTS.values(), ids=EXPECTED_TEXTS)
def test_page_contains_each_fact(full: html.HtmlElement, place: str, text: str) -> None:
    (element,) = full.iter("h1") if place == "h1" else [full.get_element_by_id(place[1:])]
    assert text in visible_text(element)


EXPECTED_WITHOUT_RESULTS = {
    "headline": "Not compared with the base model",
    "overfitting": "Overfitting not measured",
    "bias": "Bias not measured",
    "gate": "No gate configured",
    "samples": "No answers were generated. Set evaluation.samplePrompts",
    "losses": "No losses were recorded.",
    "energy": "Energy of the GPUs not measured",
}


@pytest.mark.parametrize("text", EXPECTED_WITHOUT_RESULTS.values(), ids=EXPECTED_WITHOUT_RESULTS)
def test_page_missing_results_are_stated(minimal: html.HtmlElement, text: str) -> None:
    assert text in visible_text(minimal)


def test_page_row_counts_add_up(full: html.HtmlElement) -> None:
    (table,) = (candidate for candidate in full.iter("table") if "All rows" in visible_text(candidate.find("caption")))
    counts = [int(row.findall("td")[0].text.replace(",", "")) for row in table.find("tbody")]
    total = int(table.find("tfoot").find(".//td").text.replace(",", ""))
    assert sum(counts) == total == 12_000


def test_page_unaccounted_rows_are_shown() -> None:
    report = run_records.DATASET_REPORT.model_copy(update={"kept": 10_000})
    assert "unaccounted a bug; please report it 423" in visible_text(
        parse_page(
            render_page(
                run_records.make_manifest(dataset=report),
                run_records.make_minimal_evaluation(),
                run_records.ADAPTER_FACTS,
            )
        )
    )


def test_page_loads_and_runs_nothing(full: html.HtmlElement) -> None:
    assert not LOADING_TAGS & {element.tag for element in full.iter()}
    for element in full.iter():
        assert not [name for name in element.attrib if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            target = element.get(name, "#")
            assert target.startswith("#") or target in LINKED_FILES
    (style,) = full.iter("style")
    assert not re.search(r"url\(|@import|expression", style.text)
    (policy,) = full.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_page_is_accessible_to_screen_readers(full: html.HtmlElement) -> None:
    for picture in full.xpath("//svg[not(ancestor::svg)]"):
        if picture.get("aria-hidden") != "true":
            named = picture.get("aria-labelledby").split()
            assert picture.get("role") == "img"
            assert [full.get_element_by_id(name).tag for name in named] == ["title", "desc"]
    assert all(visible_text(table.find("caption")) for table in full.iter("table"))
    levels = [int(element.tag[1]) for element in full.iter("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert levels.count(1) == 1
    identifiers = Counter(full.xpath("//@id"))
    assert set(identifiers.values()) == {1}


def count_elements(document: html.HtmlElement) -> Counter[tuple[object, ...]]:
    return Counter((element.tag, *sorted(element.attrib)) for element in document.iter())


@pytest.mark.parametrize("text", hostile_texts.HOSTILE_TEXTS.values(), ids=hostile_texts.HOSTILE_TEXTS)
def test_page_hostile_text_keeps_structure(text: str) -> None:
    written = render_page(
        hostile_texts.hostile_manifest(text), hostile_texts.hostile_evaluation(text), run_records.ADAPTER_FACTS
    )
    written.encode()
    assert len(written) < 200_000
    assert not DIRECTION_MARKS.search(written)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", written)
    plain = render_page(
        hostile_texts.hostile_manifest("x"), hostile_texts.hostile_evaluation("x"), run_records.ADAPTER_FACTS
    )
    assert count_elements(parse_page(written)) == count_elements(parse_page(plain))


EXPECTED_DISPLAY = {
    "script": ("<script>alert(1)</script>", "<script>alert(1)</script>"),
    "override": ("\u202egnp.exe", "[U+202E]gnp.exe"),
    "nul": ("a\x00b", "a[U+0000]b"),
    "half a character": ("a\ud800b", "a[U+D800]b"),
    "family": ("\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f467"),
    "long": ("y" * 2**20, "y" * 1500 + " … [shortened, 1,048,576 characters in all]"),
}


@pytest.mark.parametrize(("text", "expected"), EXPECTED_DISPLAY.values(), ids=EXPECTED_DISPLAY)
def test_page_sample_text_is_shown_safely(text: str, expected: str) -> None:
    evaluation = hostile_texts.hostile_evaluation("x")
    sample = evaluation.samples[0].model_copy(update={"tuned": GeneratedAnswer(text=text)})
    changed = evaluation.model_copy(update={"samples": [sample]})
    document = parse_page(render_page(run_records.make_manifest(), changed, run_records.ADAPTER_FACTS))
    (shown,) = document.xpath("//div[@class='tuned']/pre")
    assert (shown.text_content().removeprefix("\n"), shown.get("dir")) == (expected, "auto")


FINE = OverfittingResult(verdict="none", message="fine")
SPARSE_EVALUATIONS = {
    "one loss": EvaluationReport(overfitting=FINE, training_losses=[LossPoint(step=0, loss=0)]),
    "equal losses": EvaluationReport(
        overfitting=FINE, validation_losses=[LossPoint(step=step, loss=2) for step in (1, 2)]
    ),
    "one length": EvaluationReport(overfitting=FINE, lengths=[LengthBin(start=0, end=1, rows=1)]),
    "no rows in any length": EvaluationReport(overfitting=FINE, lengths=[LengthBin(start=0, end=1, rows=0)]),
    "step out of the curve": EvaluationReport(
        overfitting=FINE.model_copy(update={"best_step": 900}), training_losses=[LossPoint(step=1, loss=1)]
    ),
}


@pytest.mark.parametrize("evaluation", SPARSE_EVALUATIONS.values(), ids=SPARSE_EVALUATIONS)
def test_page_sparse_data_is_drawn(evaluation: EvaluationReport) -> None:
    assert "nan%" not in render_page(run_records.make_manifest(), evaluation, run_records.ADAPTER_FACTS)


def test_page_long_lists_are_shortened_with_count() -> None:
    evaluation = run_records.make_full_evaluation()
    many = evaluation.model_copy(update={"samples": evaluation.samples[:1] * 40})
    inputs = run_records.make_manifest().inputs * 120
    document = parse_page(render_page(run_records.make_manifest(inputs=inputs), many, run_records.ADAPTER_FACTS))
    assert len(document.xpath("//article")) == 20
    assert "And 20 more in evaluation.json" in visible_text(document)
    assert "And 70 more in manifest.json" in visible_text(document)


def render(evaluation: EvaluationReport, **manifest: Any) -> html.HtmlElement:
    return parse_page(render_page(run_records.make_manifest(**manifest), evaluation, run_records.ADAPTER_FACTS))


def test_page_title_and_head_name_the_job(full: html.HtmlElement) -> None:
    assert full.findtext(".//title") == "support/parcel-bot: fine-tuning report"
    assert "support/parcel-bot" in visible_text(full.find(".//header"))


def test_page_without_job_names_the_output() -> None:
    document = render(run_records.make_minimal_evaluation(), job="")
    assert document.findtext(".//title") == "bot: fine-tuning report"


def test_page_forgetting_has_a_chip_of_its_own() -> None:
    rise = run_records.make_measure("generalPerplexity", 57, 127, 1, higher_is_better=False)
    evaluation = EvaluationReport(overfitting=FINE, forgetting=judge_forgetting(rise))
    chips = {visible_text(chip): chip.get("class") for chip in render(evaluation).find_class("chip")}
    assert chips["No overfitting found"] == "chip good"
    assert chips["The model forgets"] == "chip bad"


def test_page_samples_separate_prompts_and_rows_by_role(full: html.HtmlElement) -> None:
    section = full.get_element_by_id("samples")
    assert [title.text for title in section.iter("h3")] == ["Your prompts", "Validation rows"]
    assert [role.text for role in section.find_class("role")] == ["User", "User"]


def test_page_cut_answer_is_marked_with_the_limit() -> None:
    cut = GeneratedAnswer(text="1. Choose a color 2.", reasoning="Colors.", is_cut=True)
    sample = run_records.make_sample("Paint?", "-", "-").model_copy(update={"base": cut})
    evaluation = EvaluationReport(overfitting=FINE, samples=[sample], max_new_tokens=128)
    text = visible_text(render(evaluation).get_element_by_id("samples"))
    assert "Base model Reasoning Colors. 1. Choose a color 2. Cut after 128 tokens" in text


def test_page_empty_answer_is_named() -> None:
    answers = {"base": GeneratedAnswer(text=""), "tuned": GeneratedAnswer(text="", reasoning="Colors.")}
    sample = run_records.make_sample("Paint?", "-", "-").model_copy(update=answers)
    text = visible_text(render(EvaluationReport(overfitting=FINE, samples=[sample])).get_element_by_id("samples"))
    assert "Base model Empty. Tuned model Reasoning Colors. Empty: nothing follows the reasoning." in text


@pytest.mark.parametrize(("task", "is_stated"), [("chat", True), ("summarization", True), ("classification", False)])
def test_page_says_for_generated_text_that_facts_are_not_judged(task: Task, is_stated: bool) -> None:
    document = render(run_records.make_full_evaluation().model_copy(update={"task": task}))
    assert ("They do not judge whether the facts" in visible_text(document)) == is_stated


def test_page_baselines_have_tables_of_their_own() -> None:
    measure = run_records.make_measure("chrf", 20, 30, 1)
    comparison = Comparison(estimate=run_records.make_estimate(28, 1), change=run_records.make_estimate(2, 1))
    evaluation = EvaluationReport(
        overfitting=FINE, measures=[measure.model_copy(update={"baselines": {"last-week": comparison}})]
    )
    text = visible_text(render(evaluation).get_element_by_id("comparison"))
    assert "Comparison with the baseline last-week" in text
    assert "chrF 28 27 to 29 30 29 to 31 +2 +1 to +3 better" in text


@pytest.mark.parametrize("held_out", [True, False])
def test_page_and_card_baseline_say_whether_its_rows_were_held_out(held_out: bool) -> None:
    measure = run_records.make_measure("chrf", 20, 30, 1)
    comparison = Comparison(estimate=run_records.make_estimate(28, 1), change=run_records.make_estimate(2, 1))
    evaluation = EvaluationReport(
        overfitting=FINE,
        measures=[measure.model_copy(update={"baselines": {"may": comparison}})],
        baselines={"may": BaselineRecord(held_out=held_out)},
    )
    texts = (
        visible_text(render(evaluation).get_element_by_id("comparison")),
        render_card(run_records.make_manifest(), evaluation, run_records.ADAPTER_FACTS),
    )
    for text in texts:
        assert ("The validation rows were held out when the baseline was trained, too." in text) is held_out
        assert ("which makes that one look better than it is." in text) is not held_out


@pytest.mark.parametrize(("task", "content"), [(None, "rows),"), ("chat", "rows, answers and their scores),")])
def test_page_links_the_scores_of_rows_with_and_without_a_task(task: Task | None, content: str) -> None:
    rows = [RowScores(row="sha256:0", scores={"tuned": {"lossSum": 1, "lossTokens": 2}})]
    footer = render(EvaluationReport(overfitting=FINE, task=task, rows=rows)).find(".//footer")
    assert f"evaluation.jsonl (losses of the validation {content}" in visible_text(footer)
    assert "evaluation.jsonl" not in visible_text(render(EvaluationReport(overfitting=FINE)).find(".//footer"))


def test_page_unused_columns_and_skipped_files_are_named() -> None:
    evaluation = EvaluationReport(overfitting=FINE, unused_columns={"source": 12, "id": 1})
    report = run_records.DATASET_REPORT.model_copy(update={"skipped_files": 2, "control_tokens": 1})
    text = visible_text(render(evaluation, dataset=report).get_element_by_id("data"))
    assert "Columns that were not used: source (12 rows), id (1 row)." in text
    assert "2 hidden or temporary files in the folders of the sources were left out." in text
    assert "1 row contains the text of a control token." in text


def test_page_links_the_log(full: html.HtmlElement) -> None:
    assert "run.log" in [link.get("href") for link in full.find(".//footer").iter("a")]
