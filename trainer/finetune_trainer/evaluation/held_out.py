"""Whether earlier trainings have trained on the validation rows of a run.

A run drops training rows that are also validation rows (`leaked`). So an earlier run has not trained on a row that was
one of its own validation rows. Nothing is known of other rows: the training data of an earlier run is not kept.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from finetune_trainer.data.row_digests import compute_set_digest, iterate_digests
from finetune_trainer.inputs.earlier_results import FetchedResult
from finetune_trainer.inputs.resolve import START_ADAPTER, DownloadedInputs
from finetune_trainer.records.evaluation import BaselineRecord

if TYPE_CHECKING:
    from finetune_trainer.data.row_digests import DigestTable

log = logging.getLogger(__name__)


def find_validation_digest(table: DigestTable | None, inputs: DownloadedInputs) -> str | None:
    """Return the digest of the validation rows, or None if there are none, or if the adapter that the training has
    started from may have been trained on them."""
    if table is None:
        return None
    if inputs.adapter and not are_held_out(table, inputs.results.get(START_ADAPTER)):
        return None
    return compute_set_digest(table)


def describe_baselines(table: DigestTable | None, inputs: DownloadedInputs) -> dict[str, BaselineRecord]:
    """Return what is known of each of `evaluation.baselines`, by name.

    The rows are held out only if the adapter that the training has started from has not been trained on them, either.
    """
    is_unseen, results = find_validation_digest(table, inputs) is not None, inputs.results
    return {
        name: BaselineRecord(
            digest=results[name].digest if name in results else None,
            held_out=is_unseen and are_held_out(table, results.get(name)),
        )
        for name in inputs.baselines
    }


def are_held_out(table: DigestTable | None, result: FetchedResult | None) -> bool:
    """Return whether all rows were validation rows of an earlier result. False if that is not known."""
    if table is None or result is None or result.validation_digest is None:
        return False
    if result.validation_digest == compute_set_digest(table):
        return True
    known = _read_row_digests(result.row_scores) if result.row_scores else set()
    return all(digest in known for digest in iterate_digests(table))


class _RowDigest(BaseModel):
    """The field of a line of `evaluation.jsonl` that all versions have."""

    row: str


def _read_row_digests(path: Path) -> set[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            return {_RowDigest.model_validate_json(line).row for line in lines}
    except (UnicodeDecodeError, ValidationError) as error:  # of a version to come
        log.warning("evaluation: the rows of an earlier result cannot be read: %s", error)
        return set()
