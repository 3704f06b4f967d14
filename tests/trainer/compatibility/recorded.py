"""Files that earlier versions have written, and the inputs of those runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.trainer.s3_server import KEY_ID, SECRET
from tests.support.trainer.tiny_model import QUIET_ENV

from finetune_trainer.contract import CONFIG_ENV, OUTCOME_PATH_ENV, RUN_ID_ENV, SCRATCH_ENV, TrainerConfig
from finetune_trainer.telemetry.http_server import PORT_ENV

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

RECORDED_DIR = Path(__file__).parent / "recorded"
MODEL_DIR = RECORDED_DIR / "model"
ROWS_PATH = RECORDED_DIR / "train.jsonl"
OUTPUT_URI = "s3://results/compatibility"
BASE_CONFIG: dict[str, Any] = {
    "model": {"uri": "s3://models/compatibility/", "maxLength": 64},
    "dataset": {"sources": [{"uri": "s3://data/compatibility.jsonl"}], "validation": {"fraction": 0.25}},
    "training": {
        "maxSteps": 4,
        "backend": "transformers",
        "batchSize": 2,
        "learningRate": 1e-2,
        "lora": {"rank": 2},
        "checkpoints": {"everySteps": 2},
    },
    "output": {"uri": OUTPUT_URI},
}
"""The run that is recorded, but for `storage`."""


def store_inputs(s3: S3Server) -> None:
    """Store base model and rows at the URIs in `BASE_CONFIG`."""
    for path in MODEL_DIR.iterdir():
        s3.put(f"s3://models/compatibility/{path.name}", path.read_bytes())
    s3.put("s3://data/compatibility.jsonl", ROWS_PATH.read_bytes())


def build_config(s3: S3Server, changes: dict[str, Any] | None = None) -> TrainerConfig:
    """Return `BASE_CONFIG` with this server as storage, and with changes to some of its parts."""
    content = BASE_CONFIG | {"storage": {"endpoint": s3.endpoint}}
    for part, values in (changes or {}).items():
        content[part] = content.get(part, {}) | values
    return TrainerConfig.model_validate(content)


@contextmanager
def start_trainer(config: TrainerConfig, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a trainer process. Its log and its outcome are in the folder."""
    environment = os.environ | QUIET_ENV | {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
    environment |= {CONFIG_ENV: json.dumps(config.to_json()), SCRATCH_ENV: str(folder), RUN_ID_ENV: "recorded"}
    environment |= {OUTCOME_PATH_ENV: str(folder / "outcome"), PORT_ENV: "0", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "finetune_trainer", "run"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)
    with process:
        try:
            yield process
        finally:
            process.kill()
