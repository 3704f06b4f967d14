"""Reads the published results of the trials of a sweep. What cannot be read is a `NotReadable`, not a failed task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from finetune_trainer.contract import Model, Reason, TrialRow
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.paired_results import EvaluatedRow, parse_row
from finetune_trainer.records.evaluation import EVALUATION_NAME, Estimate
from finetune_trainer.records.manifest import MANIFEST_NAME, ROW_SCORES_NAME, AdapterManifest, compute_digest
from finetune_trainer.storage import S3, Location, read_object
from finetune_trainer.storage.lines import parse_lines

_MISSING_REASONS = (Reason.OUTPUT_NOT_FOUND, Reason.ACCESS_DENIED)
"""Reasons that no retry changes. Stores report a missing object as denied to those who may not list."""


_T = TypeVar("_T")


class NotReadable(Exception):
    """A file of a trial is missing or invalid. The message says which one, and why."""


class _StoredMeasure(Model):
    model_config = ConfigDict(extra="ignore")

    name: str
    tuned: dict[str, Any]


class _StoredEvaluation(Model):
    """The fields of `EvaluationReport` that a sweep needs. A newer trainer may have written others."""

    model_config = ConfigDict(extra="ignore")

    measures: list[_StoredMeasure] = Field(default=[])


def read_manifest(s3: S3, trial: TrialRow) -> AdapterManifest:
    """Return the manifest of a trial. Raises `NotReadable` also if another run has replaced the result since."""
    location = _locate(trial, MANIFEST_NAME)
    with _translate_problems(location):
        content = _require(read_object(s3, location), location)
        if trial.digest and compute_digest(content) != trial.digest:
            raise NotReadable(f"{location} is no longer that of {trial.name}: another run has published there")
        return AdapterManifest.model_validate_json(content)


def read_rows(s3: S3, trial: TrialRow) -> list[EvaluatedRow]:
    """Return the tuned model's results on the validation rows of a trial. Raises `NotReadable`."""
    location = _locate(trial, ROW_SCORES_NAME)
    with _translate_problems(location):
        return _require(parse_lines(s3, location, parse_row), location)


def read_estimate(s3: S3, trial: TrialRow, metric: str) -> Estimate | None:
    """Return a metric of a trial with its confidence interval, or None if it was not measured. Raises `NotReadable`."""
    location = _locate(trial, EVALUATION_NAME)
    with _translate_problems(location):
        evaluation = _StoredEvaluation.model_validate_json(_require(read_object(s3, location), location))
        found = [measure.tuned for measure in evaluation.measures if measure.name == metric]
        return Estimate.model_validate(found[0]) if found else None


def _locate(trial: TrialRow, name: str) -> Location:
    if trial.adapter_uri is None:
        raise NotReadable(f"{trial.name} has no result")
    return Location.parse_folder(trial.adapter_uri).child(name)


def _require(content: _T | None, location: Location) -> _T:
    if content is None:
        raise NotReadable(f"{location} does not exist")
    return content


@contextmanager
def _translate_problems(location: Location) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise NotReadable(f"{location} is not valid: {error.errors()[0]['msg']}") from error
    except TrainerError as error:
        if error.reason not in _MISSING_REASONS:
            raise
        raise NotReadable(error.message) from error
