"""Results in S3 as a trainer publishes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tests.support.trainer.run_records import make_manifest
from tests.support.trainer.s3_server import S3Server

from finetune_trainer.records.evaluation import RowScores
from finetune_trainer.records.manifest import FileRecord

FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"weights",
    "report.html": b"<html>report</html>",
    "run.log": b"first\nlast",
}


def publish_result(s3: S3Server, uri: str, files: Mapping[str, bytes] = FILES, **changes: Any) -> None:
    """Store the files of a result and its manifest."""
    records = []
    for name, content in files.items():
        s3.put(f"{uri}/{name}", content)
        records.append(build_record(name, content))
    s3.put(f"{uri}/manifest.json", make_manifest(**{"files": records, **changes}).to_bytes())


def build_record(name: str, content: bytes) -> FileRecord:
    """Return the record of a file in a manifest."""
    return FileRecord(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def build_rows(losses: list[float]) -> bytes:
    """Return `evaluation.jsonl` with one row per loss."""
    rows = [
        RowScores(row=f"sha256:{index:064x}", scores={"tuned": {"lossSum": loss * 20, "lossTokens": 20}})
        for index, loss in enumerate(losses)
    ]
    return "\n".join(row.model_dump_json(by_alias=True) for row in rows).encode()
