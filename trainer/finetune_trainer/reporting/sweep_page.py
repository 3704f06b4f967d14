"""`report.html` of a sweep: one self-contained page with its configurations and the verdict on the best one."""

from __future__ import annotations

from typing import Any

from finetune_trainer.evaluation.decisions import decide_direction
from finetune_trainer.records.evaluation import Estimate
from finetune_trainer.records.manifest import REPORT_NAME
from finetune_trainer.records.sweep import BEST_NAME, SWEEP_NAME, ConfigurationResult, SweepRecord
from finetune_trainer.reporting import charts
from finetune_trainer.reporting.environment import create_environment
from finetune_trainer.reporting.learning_rates import EVIDENCED_RANGE, SOURCES, advise_on_learning_rates
from finetune_trainer.reporting.links import link_run_report
from finetune_trainer.reporting.verdicts import Verdict
from finetune_trainer.storage import Location

MAX_PROBLEMS = 20


def render_sweep_page(record: SweepRecord, output: Location) -> str:
    """Render the page at an output. It loads no resources and runs no scripts."""
    ranked = [result for result in record.configurations if result.rank is not None]
    learning_rates = _list_learning_rates(ranked)
    context = {
        "record": record,
        "headline": _build_headline(record, ranked),
        "names": list(record.configurations[0].parameters.to_json()) if record.configurations else [],
        "seeds": max((len(result.trials) for result in record.configurations), default=1),
        "steps": sorted(
            {each.step for result in record.configurations for trial in result.trials for each in trial.steps}
        ),
        "links": _link_reports(record, output),
        "change": _build_change_context(record),
        "chart": charts.build_scatter_chart(record.objective, learning_rates),
        "advice": _advise(record, ranked),
        "evidenced_range": EVIDENCED_RANGE,
        "sources": SOURCES,
        "files": [
            (SWEEP_NAME, "all numbers of this page"),
            *([(BEST_NAME, "the best configuration")] if ranked else []),
        ],
        "max_problems": MAX_PROBLEMS,
    }
    return create_environment().get_template("sweep.html.j2").render(context)


def _build_headline(record: SweepRecord, ranked: list[ConfigurationResult]) -> Verdict:
    if not ranked:
        return Verdict("Best", "bad", "No trial is complete")
    best = ranked[0].parameters.describe()
    if record.verdict == "Better":
        return Verdict("Best", "good", f"The best: {best}")
    if record.verdict == "Inconclusive":
        return Verdict("Best", "unsure", f"Not significantly better than the second: {best}")
    return Verdict("Best", "unsure", f"Not compared with others: {best}")


def _list_learning_rates(ranked: list[ConfigurationResult]) -> list[tuple[float, float]]:
    """Return learning rate and objective of the ranked configurations, the best first."""
    return [
        (result.parameters.learning_rate, result.value)
        for result in ranked
        if result.parameters.learning_rate is not None and result.value is not None
    ]


def _advise(record: SweepRecord, ranked: list[ConfigurationResult]) -> list[str]:
    best = ranked[0].parameters.learning_rate if ranked else None
    rates = [result.parameters.learning_rate for result in record.configurations]
    return advise_on_learning_rates([rate for rate in rates if rate is not None], best) if best is not None else []


def _link_reports(record: SweepRecord, output: Location) -> dict[str, str]:
    """Return the address of each complete trial's report by the name of the trial."""
    trials = [trial for result in record.configurations for trial in result.trials if trial.value is not None]
    links = {trial.name: link_run_report(output.child(REPORT_NAME), trial.adapter_uri) for trial in trials}
    return {name: link for name, link in links.items() if link}


def _build_change_context(record: SweepRecord) -> dict[str, Any] | None:
    change = record.change
    if change is None:
        return None
    estimate = Estimate(value=change.change, low=change.low, high=change.high, samples=change.samples)
    return {
        "estimate": estimate,
        "direction": decide_direction(estimate, change.p_value, higher_is_better=change.higher_is_better),
        "whisker": charts.build_whisker(estimate, change.higher_is_better),
        **change.model_dump(),
    }
