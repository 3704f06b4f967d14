"""`report.html`: one page that answers, in this order, what a person asks about a run."""

from __future__ import annotations

from functools import cache
from io import StringIO
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from ruamel.yaml import YAML

from finetune_trainer import text
from finetune_trainer.records.evaluation import Evaluation
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting import charts, data_table, formatting, verdicts
from finetune_trainer.reporting.adapter_info import AdapterFacts, config_of, settings, took
from finetune_trainer.reporting.advice import advice

MOST_SHOWN = 20
"""Samples, examples and the like; the rest is counted and lies in `evaluation.json`."""
MOST_INPUTS = 50


def page(manifest: AdapterManifest, evaluation: Evaluation, facts: AdapterFacts) -> str:
    """The page, whole in itself: it loads nothing and runs nothing."""
    context = {
        "manifest": manifest,
        "evaluation": evaluation,
        "facts": facts,
        "most": {"shown": MOST_SHOWN, "inputs": MOST_INPUTS},
        **_judged(manifest, evaluation),
        **_drawn(manifest, evaluation),
        **_made(manifest, facts),
    }
    return _environment().get_template("page.html.j2").render(context)


def _judged(manifest: AdapterManifest, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "headline": verdicts.quality(evaluation),
        "trust": verdicts.trust(evaluation),
        "directions": [verdicts.direction(measure) for measure in evaluation.measures],
        "advice": advice(evaluation, manifest),
    }


def _drawn(manifest: AdapterManifest, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "account": data_table.lines(manifest.dataset),
        "losses": charts.losses(evaluation),
        "lengths": charts.lengths(evaluation.lengths),
        "whiskers": [charts.whisker(each.change, each.higher_is_better) for each in evaluation.measures],
    }


def _made(manifest: AdapterManifest, facts: AdapterFacts) -> dict[str, Any]:
    return {
        "settings": list(settings(config_of(manifest), facts, manifest)),
        "took": list(took(manifest.metrics)),
        "config_text": _as_yaml(manifest.config),
    }


def _as_yaml(config: dict[str, Any]) -> str:
    """As it would stand under `spec` of a manifest."""
    writer, target = YAML(), StringIO()
    writer.width = 100
    writer.dump(config, target)
    return target.getvalue()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("finetune_trainer.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "estimate": formatting.estimate,
        "energy": formatting.energy,
        "interval": formatting.interval,
        "measure_name": formatting.measure_name,
        "number": formatting.number,
        "one_line": text.one_line,
        "part": lambda count, row: round(count / (sum(row) or 1), 2),
        "share": formatting.share,
        "shown": text.shown,
        "signed": formatting.signed,
        "size": formatting.size,
        "visible": text.visible,
    }
    return environment
