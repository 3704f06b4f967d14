"""Compares two runs: settings, data, metrics, and the paired change where they have evaluated the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from finetune_operator.client.results import StoredResult
from finetune_trainer.contract import MetricChange

if TYPE_CHECKING:
    from finetune_trainer.evaluation.paired_results import EvaluatedRow, RowPair

_OTHER_SECTIONS = ("dataset", "output")
_ROW_METRICS = (
    "evalLoss", "perplexity", "accuracy", "exactMatch", "macroF1", "rouge1", "rouge2", "rougeL", "bleu", "chrf",
)  # fmt: skip
"""Metrics of validation rows. Others, such as `trainSeconds`, are not compared row by row."""
_VERDICTS = {"few": "too few common rows", "unknown": "unclear"}


@dataclass(frozen=True)
class Difference:
    """A field whose value differs, such as `training.learningRate`. None: the run does not set it."""

    field: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class MetricRow:
    """A metric of both runs."""

    name: str
    first: float | None
    second: float | None
    change: MetricChange | None = None
    """Paired change from the first run to the second on `change.samples` common rows."""
    verdict: str = ""
    """`better`, `worse`, `unclear`, or why the runs cannot be compared on common rows."""


@dataclass(frozen=True)
class RunComparison:
    """The comparison of two runs. `first` and `second` are their names."""

    first: str
    second: str
    settings: list[Difference] = field(default_factory=list)
    """Fields of the config that differ, without data and output."""
    data: list[Difference] = field(default_factory=list)
    """Sources, numbers of rows and digests that differ."""
    metrics: list[MetricRow] = field(default_factory=list)
    common_rows: int = 0
    """Validation rows that both runs have evaluated."""


def compare_runs(
    first: StoredResult,
    second: StoredResult,
    first_rows: Sequence[EvaluatedRow] = (),
    second_rows: Sequence[EvaluatedRow] = (),
) -> RunComparison:
    """Compare two published results."""
    from finetune_trainer.evaluation.paired_results import pair_rows

    pairs = pair_rows(first_rows, second_rows)
    return RunComparison(
        first=_get_name(first),
        second=_get_name(second),
        settings=_find_differences(_collect_settings(first), _collect_settings(second)),
        data=_find_differences(_collect_data(first), _collect_data(second)),
        metrics=_compare_metrics(first.manifest.metrics, second.manifest.metrics, pairs),
        common_rows=len(pairs),
    )


def _get_name(result: StoredResult) -> str:
    return result.manifest.job.rpartition("/")[2] or result.uri.rpartition("/")[2]


def _collect_settings(result: StoredResult) -> dict[str, str]:
    manifest = result.manifest
    sections = {key: value for key, value in manifest.config.items() if key not in _OTHER_SECTIONS}
    facts = {"model.revision": manifest.model.revision, "backend": manifest.backend, "recipe": str(manifest.recipe)}
    return {**dict(_flatten(sections)), **facts}


def _collect_data(result: StoredResult) -> dict[str, str]:
    manifest = result.manifest
    report = {f"rows.{key}": value for key, value in _flatten(manifest.dataset.to_json())}
    facts = dict(_flatten({"dataset": manifest.config.get("dataset", {})})) | report
    if manifest.validation_digest:
        facts["validationDigest"] = manifest.validation_digest
    return facts


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield path and text of each field. Lists are compared as a whole, in JSON."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{key}.")
        elif item is not None:
            yield prefix + key, item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def _find_differences(first: Mapping[str, str], second: Mapping[str, str]) -> list[Difference]:
    fields = dict.fromkeys([*first, *second])
    return [
        Difference(name, first.get(name), second.get(name)) for name in fields if first.get(name) != second.get(name)
    ]


def _compare_metrics(
    first: Mapping[str, float], second: Mapping[str, float], pairs: Sequence[RowPair]
) -> list[MetricRow]:
    names = dict.fromkeys([*first, *second])
    return [_compare_metric(MetricRow(name, first.get(name), second.get(name)), pairs) for name in names]


def _compare_metric(row: MetricRow, pairs: Sequence[RowPair]) -> MetricRow:
    """Add the paired change to a metric that is measured on rows and that both runs have."""
    from finetune_trainer.evaluation.decisions import decide_direction
    from finetune_trainer.evaluation.paired_results import NotComparable, compare_rows
    from finetune_trainer.records.evaluation import Estimate

    if row.name not in _ROW_METRICS or row.first is None or row.second is None:
        return row
    try:
        change = compare_rows(row.name, pairs)
    except NotComparable as error:
        return replace(row, verdict=str(error))
    estimate = Estimate(value=change.change, low=change.low, high=change.high, samples=change.samples)
    direction = decide_direction(estimate, change.p_value, higher_is_better=change.higher_is_better)
    return replace(row, change=change, verdict=_VERDICTS.get(direction, direction))
