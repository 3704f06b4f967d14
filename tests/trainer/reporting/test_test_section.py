"""The section of the report page on the rows of `evaluation.test`."""

from __future__ import annotations

from tests.support.trainer import run_records
from tests.trainer.reporting.test_page import SECTIONS, parse_page, visible_text

from finetune_trainer.records.evaluation import Comparison
from finetune_trainer.reporting.page import render_page

TEST_MEASURES = [
    run_records.make_measure("testLoss", 2.3, 1.5, 0.05, higher_is_better=False).model_copy(
        update={"baselines": {"may": Comparison(estimate=run_records.make_estimate(1.6, 0.1))}}
    ),
    run_records.make_measure("testAccuracy", 0.6, 0.61, 0.04),
]


def test_page_test_data_has_a_section_of_its_own() -> None:
    evaluation = run_records.make_full_evaluation().model_copy(update={"test_measures": TEST_MEASURES})
    report = run_records.DATASET_REPORT.model_copy(update={"test": 100, "rows": 12_100})
    page = parse_page(render_page(run_records.make_manifest(dataset=report), evaluation, run_records.ADAPTER_FACTS))
    assert [section.get("id") for section in page.iter("section")] == [*SECTIONS[:2], "test", *SECTIONS[2:]]
    text = visible_text(page.get_element_by_id("test"))
    assert "Better: Test loss. No clear change: Test accuracy." in text
    assert "Neither the training nor early stopping has seen them, and no model is chosen by them" in text
    assert "Test loss testLoss, lower is better 2.300 2.250 to 2.350 1.500 1.450 to 1.550" in text
    assert "Comparison with the baseline may on the test rows" in text
    assert "A baseline may have been trained on these rows" in text
    assert "Test" not in visible_text(page.get_element_by_id("comparison"))
    data = visible_text(page.get_element_by_id("data"))
    assert "test held out for the test of the finished model 100" in data
    assert "leaked duplicates of validation or test rows 25" in data


def test_page_without_validation_rows_is_judged_by_the_test_rows() -> None:
    evaluation = run_records.make_minimal_evaluation().model_copy(update={"test_measures": TEST_MEASURES})
    report = run_records.DATASET_REPORT.model_copy(update={"validation": 0, "test": 540})
    page = parse_page(render_page(run_records.make_manifest(dataset=report), evaluation, run_records.ADAPTER_FACTS))
    (headline,) = page.iter("h1")
    assert visible_text(headline) == "Lower loss than the base model, but no clearly better answers"
    assert "Hold out validation rows" not in visible_text(page.get_element_by_id("recommendations"))
