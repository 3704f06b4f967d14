"""Published results and aliases that name them, without training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tests.support.trainer.run_records import make_manifest

from finetune_trainer.contract import PromoteTask, ResultReference
from finetune_trainer.records.manifest import FileRecord, compute_digest

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

SCHEDULE = "team/bot"
FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"weights" * 100,
    "templates/tool.jinja": b"{{ x }}",
}


def put_result(s3: S3Server, prefix: str, run: str, **changes: Any) -> ResultReference:
    """Publish an invented result of a run below a prefix. `changes` are fields of its manifest."""
    uri, contents = f"{prefix}/{run}", {**FILES, "README.md": f"card of {run}".encode()}
    for name, content in contents.items():
        s3.put(f"{uri}/{name}", content)
    records = [
        FileRecord(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    ]
    manifest = make_manifest(job=f"team/{run}", files=records, **changes).to_bytes()
    s3.put(f"{uri}/manifest.json", manifest)
    return ResultReference(run=run, adapter_uri=uri, digest=compute_digest(manifest))


def build_task(prefix: str, champion: ResultReference, **fields: Any) -> PromoteTask:
    content = {
        "aliasURI": f"{prefix}/champion.json",
        "schedule": SCHEDULE,
        "champion": champion.to_json(),
        "metrics": {"accuracy": 0.83, "evalLoss": 1e-05},
        "promotedTime": "2026-03-04T05:06:07Z",
        **fields,
    }
    return PromoteTask.model_validate(content)


def read_alias(s3: S3Server, prefix: str) -> dict[str, Any]:
    alias: dict[str, Any] = json.loads(s3.get(f"{prefix}/champion.json"))
    return alias


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """Write a private key in PEM, and its public key beside it. Returns the path of the public key."""
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public_path = path.with_suffix(".public.pem")
    public_path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public_path
