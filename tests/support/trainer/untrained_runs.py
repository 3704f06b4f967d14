"""Runs without training: publishing an invented result, and runs that end before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from finetune_trainer.contract import DatasetReport, Outcome, TrainerConfig
from finetune_trainer.inputs import resolve
from finetune_trainer.pipeline import run
from finetune_trainer.publishing.adapter_manifest import build_manifest
from finetune_trainer.publishing.publish import OutputPrefix
from finetune_trainer.run_setup import resolve_run
from finetune_trainer.storage import S3
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

REPORT = DatasetReport(rows=3, kept=2, rejected={"overlength": 1}, tokens=20, supervised_tokens=9, digest="sha256:d")
EXPORTED_FILES = {
    "README.md": b"card",
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ x }}",
}


def build_config(s3: S3Server, output: str, **changes: Any) -> TrainerConfig:
    content = {
        "model": {"uri": "s3://models/tiny"},
        "dataset": {"sources": [{"uri": "s3://data/rows/"}]},
        "training": {"maxSteps": 1},
        "output": {"uri": output},
        "storage": {"endpoint": s3.endpoint},
    }
    return TrainerConfig.model_validate(content | changes)


@pytest.fixture
def prefix(s3: S3Server, tmp_path: Path) -> str:
    """Upload the inputs, and return a new output prefix."""
    s3.put("s3://data/rows/a.jsonl", b'{"prompt": "a", "completion": "b"}\n')
    s3.put("s3://data/rows/b.jsonl", b'{"prompt": "c", "completion": "d"}\n')
    s3.put("s3://models/tiny/config.json", b"{}")
    s3.put("s3://models/tiny/model.safetensors", b"base")
    return f"s3://results/{tmp_path.name}"


def publish(
    config: TrainerConfig, folder: Path, metrics: dict[str, float] | None = None, suffix: bytes = b""
) -> Outcome:
    """Publish an invented adapter as a run does. Return the outcome."""
    s3 = S3(config.storage)
    export = folder / "export"
    export.mkdir(parents=True, exist_ok=True)
    for name, content in EXPORTED_FILES.items():
        (export / name).write_bytes(content + suffix)
    resolved = resolve.resolve_inputs(config, s3)
    downloaded = resolve.fetch_weights(resolved, resolve.start_download(resolved, folder).result())
    return OutputPrefix(s3, config).publish(
        export, build_manifest(config, downloaded, "transformers", REPORT, metrics or {"x": 1.5})
    )


def run_untrained(config: TrainerConfig, scratch: Path) -> Outcome:
    """Training is never reached, since the tiny "model" is none."""
    return run(resolve_run(config), scratch, OutcomeRecorder(ProgressReporter()))
