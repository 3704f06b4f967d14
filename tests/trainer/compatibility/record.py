"""Records what this version writes, for later versions to be tested with. A recorded folder is never changed.

python -m tests.trainer.compatibility.record result recipe-2-something '{"output": {"merged": true}}'
python -m tests.trainer.compatibility.record checkpoint recipe-2
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.trainer.s3_server import S3Server, serve
from tests.support.trainer.tiny_model import build
from tests.trainer.compatibility.recorded import (
    MODEL_DIR,
    OUTPUT_URI,
    RECORDED_DIR,
    ROWS_PATH,
    build_config,
    start_trainer,
    store_inputs,
)

_SAVED_MESSAGE = "stored step 2 in"


def record_inputs() -> None:
    """The base model and the rows that every recorded run has, once for all."""
    build(MODEL_DIR, hidden=16, layers=1)
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(8)]
    ROWS_PATH.write_text("".join(json.dumps(row) + "\n" for row in rows))


def record_result(s3: S3Server, target: Path, changes: dict[str, Any]) -> None:
    """Record the manifest of a complete run."""
    with tempfile.TemporaryDirectory() as folder, start_trainer(build_config(s3, changes), Path(folder)) as process:
        process.wait(600)
    (target / "manifest.json").write_bytes(s3.get(f"{OUTPUT_URI}/manifest.json"))


def record_checkpoint(s3: S3Server, target: Path, changes: dict[str, Any]) -> None:
    """Record the checkpoint of a run that is killed after its second step."""
    with tempfile.TemporaryDirectory() as folder, start_trainer(build_config(s3, changes), Path(folder)) as process:
        log = Path(folder) / "log"
        while _SAVED_MESSAGE not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
    for key in s3.list_keys(f"{OUTPUT_URI}/.checkpoints/"):
        name = key.partition("/step-2/")[2]
        if name:
            (target / name).write_bytes(s3.get(f"s3://results/{key}"))


def main() -> None:
    """Record the kind of data that the command line names."""
    kind, name, *changes = sys.argv[1:]
    record = {"result": record_result, "checkpoint": record_checkpoint}[kind]
    target = RECORDED_DIR / f"{kind}s" / name
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        for s3 in serve(Path(folder)):
            store_inputs(s3)
            record(s3, target, json.loads(changes[0]) if changes else {})


if __name__ == "__main__":
    main()
