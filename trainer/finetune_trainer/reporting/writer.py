"""Writes the reports to the folder of the result. The only module of this package that does I/O."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from jinja2 import TemplateError

from finetune_trainer.contract import IMAGE_ENV, RUN_ID_ENV
from finetune_trainer.modeling.servable import YES
from finetune_trainer.records.adapter import AdapterInfo
from finetune_trainer.records.evaluation import EVALUATION_NAME, EvaluationReport
from finetune_trainer.records.manifest import REPORT_NAME, ROW_SCORES_NAME, AdapterManifest, FileRecord
from finetune_trainer.reporting.card import render_card
from finetune_trainer.reporting.page import render_page
from finetune_trainer.reporting.provenance import Builder, build_statement
from finetune_trainer.reporting.serving_manifests import (
    KSERVE_NAME,
    VLLM_NAME,
    describe_adapter_to_serve,
    render_kserve,
    render_vllm,
)

log = logging.getLogger(__name__)

CARD_NAME = "README.md"
PROVENANCE_NAME = "provenance.json"
_RENDER_ERRORS = (ArithmeticError, AttributeError, LookupError, TemplateError, TypeError, ValueError)
"""Errors of rendering. They must not fail a finished training, which is then published without that document."""


def write_reports(
    folder: Path, manifest: AdapterManifest, evaluation: EvaluationReport, adapter_info: AdapterInfo
) -> None:
    """Write model card, page and evaluation to `folder`, then the provenance of all files in it."""
    _try_write(folder / CARD_NAME, lambda: render_card(manifest, evaluation, adapter_info))
    write_evaluation(folder, manifest, evaluation, adapter_info)
    _write_serving_manifests(folder, manifest, adapter_info)
    _try_write(folder / PROVENANCE_NAME, lambda: json.dumps(_build_provenance(folder, manifest), indent=2))


def write_evaluation(
    folder: Path, manifest: AdapterManifest, evaluation: EvaluationReport, adapter_info: AdapterInfo
) -> None:
    """Write only page, evaluation and row scores, which are also stored for a model that failed the gate."""
    _try_write(folder / REPORT_NAME, lambda: render_page(manifest, evaluation, adapter_info))
    _try_write(folder / EVALUATION_NAME, lambda: evaluation.model_dump_json(by_alias=True, exclude_none=True, indent=2))
    if evaluation.rows:
        _try_write(
            folder / ROW_SCORES_NAME, lambda: "\n".join(row.model_dump_json(by_alias=True) for row in evaluation.rows)
        )


def _write_serving_manifests(folder: Path, manifest: AdapterManifest, adapter_info: AdapterInfo) -> None:
    """Write manifests of the servers that load the adapter."""
    if manifest.servable is None or not manifest.servable.vllm.startswith(YES):
        return
    adapter = describe_adapter_to_serve(manifest, adapter_info, os.environ.get(IMAGE_ENV, ""))
    _try_write(folder / VLLM_NAME, lambda: render_vllm(adapter).rstrip("\n"))
    _try_write(folder / KSERVE_NAME, lambda: render_kserve(adapter).rstrip("\n"))


def _try_write(path: Path, render: Callable[[], str]) -> None:
    try:
        path.write_text(render() + "\n", encoding="utf-8")
    except _RENDER_ERRORS as error:
        log.warning("report: %s could not be written: %s: %s", path.name, type(error).__name__, error)


def _build_provenance(folder: Path, manifest: AdapterManifest) -> dict[str, object]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [FileRecord.from_path(path, path.relative_to(folder).as_posix()) for path in paths]
    builder = Builder(run_id=os.environ.get(RUN_ID_ENV, ""), image=os.environ.get(IMAGE_ENV, ""))
    return build_statement(manifest, files, builder)
