"""Publishes results as the trainer does: files, and then the manifest with their digests."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.support.trainer.run_records import ADAPTER_FACTS, make_full_evaluation, make_manifest
from tests.support.trainer.s3_server import S3Server

from finetune_trainer.records.evaluation import RowScores
from finetune_trainer.records.manifest import FileRecord
from finetune_trainer.reporting.page import render_page

_HOSTILE_REPORT = """<!DOCTYPE html><html><head><meta http-equiv="refresh" content="1; url=OUTSIDE/">
<link rel="stylesheet" href="OUTSIDE/x.css"><script>parent.postMessage(document.cookie, "*"); alert(1);
fetch("/").then((response) => response.text()).then((text) => { document.title = text; })</script></head>
<body><h1>Hostile report</h1><img src="OUTSIDE/x.png" onerror="alert(2)">
<iframe src="/"></iframe><form action="OUTSIDE/"><button>Send</button></form></body></html>"""


def make_hostile_report(outside: str) -> bytes:
    """Return a report that tries to run scripts and to reach another server."""
    return _HOSTILE_REPORT.replace("OUTSIDE", outside).encode()


def _score(loss: float, tokens: int = 20) -> dict[str, float]:
    return {"lossSum": loss * tokens, "lossTokens": float(tokens)}


def make_rows(shift: float, count: int = 60) -> bytes:
    """Return `evaluation.jsonl`; `shift` is how much worse the model is on each row."""
    rows = [
        RowScores(row=f"sha256:{index:064}", scores={"tuned": _score(1.2 + shift + index % 7 / 10)})
        for index in range(count)
    ]
    return b"".join(row.model_dump_json(by_alias=True).encode() + b"\n" for row in rows)


def publish(s3: S3Server, uri: str, job: str, report: bytes = b"", shift: float = 0, **changes: Any) -> str:
    """Publish a result. Returns the digest of its manifest."""
    evaluation, manifest = make_full_evaluation(), make_manifest(job=job, **changes)
    contents = {
        "report.html": report or render_page(manifest, evaluation, ADAPTER_FACTS).encode(),
        "evaluation.jsonl": make_rows(shift),
        "evaluation.json": json.dumps(evaluation.to_json()).encode(),
        "run.log": b"step 1 loss 2.3\n<script>alert('log')</script> \x1b[31mred\n",
    }
    for name, content in contents.items():
        s3.put(f"{uri}/{name}", content)
    files = [
        FileRecord(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    ]
    content = manifest.model_copy(update={"files": files}).model_dump_json(by_alias=True, exclude_none=True).encode()
    s3.put(f"{uri}/manifest.json", content)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
