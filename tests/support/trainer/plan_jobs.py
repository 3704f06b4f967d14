"""Manifests for `plan` whose model and data are in the store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server


@dataclass(frozen=True)
class PlanJobWriter:
    """Writes manifests to a folder, whose name is also that of all objects."""

    s3: S3Server
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def upload_model(self, model_dir: Path) -> None:
        for path in model_dir.iterdir():
            self.s3.put(f"s3://models/{self.name}/{path.name}", path.read_bytes())

    def write(
        self, rows: list[Any], uri: str | None = None, evaluation: dict[str, Any] | None = None, **training: Any
    ) -> Path:
        """Store the rows, and write a manifest with fields of `training`. `uri` is another model than the stored."""
        self.s3.put(f"s3://data/{self.name}.jsonl", "\n".join(json.dumps(row) for row in rows).encode())
        spec = {
            "model": {"uri": uri or f"s3://models/{self.name}", "maxLength": 128},
            "dataset": {"sources": [{"uri": f"s3://data/{self.name}.jsonl"}]},
            "training": {"epochs": 2, "backend": "transformers", **training},
            "evaluation": evaluation or {},
            "output": {"uri": f"s3://results/{self.name}"},
            "storage": {"endpoint": self.s3.endpoint},
        }
        path = self.folder / "job.yaml"
        content = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "x"}}
        path.write_text(json.dumps(content | {"spec": spec}))
        return path
