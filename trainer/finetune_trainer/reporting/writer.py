"""Writes all that is said of a result beside it. The edge of this package: everything else in it is pure."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from jinja2 import TemplateError

from finetune_trainer.contract import IMAGE_ENV, RUN_ID_ENV
from finetune_trainer.records.evaluation import Evaluation
from finetune_trainer.records.manifest import REPORT_NAME, AdapterManifest, FileRecord
from finetune_trainer.reporting.adapter_info import AdapterFacts
from finetune_trainer.reporting.card import card
from finetune_trainer.reporting.page import page
from finetune_trainer.reporting.provenance import Builder, statement

log = logging.getLogger(__name__)

CARD_NAME = "README.md"
EVALUATION_NAME = "evaluation.json"
PROVENANCE_NAME = "provenance.json"
_FAILURES = (ArithmeticError, AttributeError, LookupError, TemplateError, TypeError, ValueError)
"""What a document may end with. A finished training is published without it."""


def write(folder: Path, manifest: AdapterManifest, evaluation: Evaluation, facts: AdapterFacts) -> None:
    """Card, page and evaluation into `folder`, then the provenance of all files that are there."""
    _attempt(folder / CARD_NAME, lambda: card(manifest, evaluation, facts))
    explain(folder, manifest, evaluation, facts)
    _attempt(folder / PROVENANCE_NAME, lambda: json.dumps(_provenance(folder, manifest), indent=2))


def explain(folder: Path, manifest: AdapterManifest, evaluation: Evaluation, facts: AdapterFacts) -> None:
    """Page and evaluation alone: what was found, of a model that is not published too."""
    _attempt(folder / REPORT_NAME, lambda: page(manifest, evaluation, facts))
    _attempt(folder / EVALUATION_NAME, lambda: evaluation.model_dump_json(by_alias=True, exclude_none=True, indent=2))


def _attempt(path: Path, make: Callable[[], str]) -> None:
    try:
        path.write_text(make() + "\n", encoding="utf-8")
    except _FAILURES as error:
        log.warning("report: %s could not be written: %s: %s", path.name, type(error).__name__, error)


def _provenance(folder: Path, manifest: AdapterManifest) -> dict[str, object]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [FileRecord.of(path, path.relative_to(folder).as_posix()) for path in paths]
    builder = Builder(run_id=os.environ.get(RUN_ID_ENV, ""), image=os.environ.get(IMAGE_ENV, ""))
    return statement(manifest, files, builder)
