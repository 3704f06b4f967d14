"""The page of a sweep, as a reader sees it."""

from __future__ import annotations

from typing import Any

import pytest
from lxml import html
from tests.support.trainer.hostile_texts import HOSTILE_TEXTS
from tests.support.trainer.page_checks import (
    check_accessible,
    check_hostile_page,
    check_loads_and_runs_nothing,
    parse_page,
    visible_text,
)
from tests.support.trainer.sweep_trials import make_trial

from finetune_trainer.contract import Configuration, MetricChange, StepResult
from finetune_trainer.records.sweep import ConfigurationResult, SweepRecord
from finetune_trainer.reporting.learning_rates import SOURCES
from finetune_trainer.reporting.sweep_page import render_sweep_page
from finetune_trainer.storage import Location

OUTPUT = Location.parse_folder("s3://results/lr")
CHANGE = MetricChange(
    metric="evalLoss", higher_is_better=False, baseline=1.3, value=1.2, change=-0.1, low=-0.15, high=-0.05, samples=200
)


def make_result(number: int, value: float | None, learning_rate: float = 3e-4, **fields: Any) -> ConfigurationResult:
    trial_fields = {"adapter_uri": f"s3://results/lr/lr-{number}"} | fields
    return ConfigurationResult(
        configuration=number,
        rank=None if value is None else number,
        parameters=Configuration(learning_rate=learning_rate),
        value=value,
        gpu_seconds=100,
        trials=[make_trial(number, value, learning_rate, **trial_fields)],
    )


def make_record(*results: ConfigurationResult, **fields: Any) -> SweepRecord:
    defaults: dict[str, Any] = {
        "sweep": "support/lr",
        "objective": "evalLoss",
        "verdict": "Better",
        "message": "lr-1 is better.",
        "change": CHANGE,
        "compared": ["lr-1", "lr-2"],
    }
    return SweepRecord(configurations=list(results), **(defaults | fields))


def make_full_record() -> SweepRecord:
    steps = [StepResult(step=100, eval_loss=2.5)]
    return make_record(
        make_result(1, 1.2, 3e-4),
        make_result(2, 1.3, 1e-3),
        make_result(3, None, 1e-4, steps=steps, cut_at_step=100),
        test={"testLoss": 1.25},
        problems=["s3://results/lr/lr-2/evaluation.json does not exist"],
    )


def render(record: SweepRecord) -> html.HtmlElement:
    return parse_page(render_sweep_page(record, OUTPUT))


def test_sweep_page_loads_nothing_and_links_the_reports_of_complete_trials() -> None:
    links = {"lr-1/report.html", "lr-2/report.html", "sweep.json", "best.json"}
    check_loads_and_runs_nothing(render(make_full_record()), links | {source.url for source in SOURCES})


def test_sweep_page_is_accessible_to_screen_readers() -> None:
    check_accessible(render(make_full_record()))


def test_sweep_page_change_is_colored_and_explains_its_correction() -> None:
    page = render(make_full_record())
    (cell,) = page.xpath("//section[@id='best']//td[@data-label='Change']")
    assert cell.get("class") == "figure better"
    assert visible_text(cell).replace("\N{MINUS SIGN}", "-") == "-0.100 -0.150 to -0.050 better"


def make_hostile_record(text: str) -> SweepRecord:
    """Return a record with the text in every field that can contain untrusted text."""
    record = make_full_record()
    trial_texts = {"phase": text, "reason": f"r{text}"}
    results = [
        result.model_copy(update={"trials": [trial.model_copy(update=trial_texts) for trial in result.trials]})
        for result in record.configurations
    ]
    foreign = results[1].trials[0].model_copy(update={"adapter_uri": f"s3://other/{text}"})
    linked = results[0].trials[0].model_copy(update={"adapter_uri": f"s3://results/{text}/x"})
    results[0], results[1] = (
        results[0].model_copy(update={"trials": [linked]}),
        results[1].model_copy(update={"trials": [foreign]}),
    )
    texts = {"sweep": text, "message": text, "problems": [text], "test": {f"test{text}": 1.0}}
    return record.model_copy(update={"configurations": results, **texts})


@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)
def test_sweep_page_hostile_text_keeps_structure(text: str) -> None:
    # The link is as long as its address, which the contract limits to 1100 characters.
    written = render_sweep_page(make_hostile_record(text[:1000].encode(errors="replace").decode()), OUTPUT)
    assert len(written) < 100_000
    check_hostile_page(written, render_sweep_page(make_hostile_record("x"), OUTPUT))


def test_sweep_page_link_is_relative_and_escaped() -> None:
    page = render(make_record(make_result(1, 1.0, adapter_uri="s3://results/javascript:alert(1)/a?b#c")))
    (link,) = page.xpath("//section[@id='configurations']//a/@href")
    assert link == "../javascript%3Aalert%281%29/a%3Fb%23c/report.html"


def test_sweep_page_without_test_data_says_how_to_measure_it() -> None:
    text = visible_text(render(make_record(make_result(1, 1.0))))
    assert "The validation data chose the best configuration" in text
    assert "No test data was measured: evaluation.test of the template" in text


LEARNING_RATE_ADVICE = {
    "largest": ([1e-4, 3e-4, 1e-3], 1e-3, "The best value, 0.001, is the largest that was tried."),
    "smallest": ([1e-4, 3e-4, 1e-3], 1e-4, "The best value, 0.0001, is the smallest that was tried."),
    "unusual": ([1e-4, 5e-3, 1e-2], 5e-3, "The best value, 0.005, is unusual."),
}


@pytest.mark.parametrize(("tried", "best", "text"), LEARNING_RATE_ADVICE.values(), ids=LEARNING_RATE_ADVICE)
def test_sweep_page_best_learning_rate_at_the_edge_is_named(tried: list[float], best: float, text: str) -> None:
    ordered = sorted(tried, key=lambda rate: rate != best)
    shown = visible_text(render(make_record(*(make_result(i, 1 + i, rate) for i, rate in enumerate(ordered, 1)))))
    assert text in shown
    assert "between 0.0001 and 0.001: LoRA Without Regret" in shown


def test_sweep_page_best_learning_rate_inside_needs_no_advice() -> None:
    results = [make_result(index, index, rate) for index, rate in enumerate((3e-4, 1e-4, 1e-3), 1)]
    assert "Published measurements" not in visible_text(render(make_record(*results)))


def test_sweep_page_one_learning_rate_has_neither_chart_nor_advice() -> None:
    page = render(make_record(make_result(1, 1.0), make_result(2, 1.1)))
    assert not page.findall(".//figure")
    assert "Published measurements" not in visible_text(page)


def test_sweep_page_equal_values_are_drawn() -> None:
    written = render_sweep_page(make_record(make_result(1, 1.0, 1e-4), make_result(2, 1.0, 1e-3)), OUTPUT)
    assert "nan%" not in written
    assert len(parse_page(written).findall(".//circle")) == 3  # two configurations, and the change
