"""A valid manifest for tests to change, and loading a config from it."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

from finetune_trainer.config import loader
from finetune_trainer.contract import TrainerConfig

MANIFEST_HEAD = "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: bot, namespace: team}\nspec:\n"
SPEC_YAML = """\
model: {uri: s3://models/tiny}
dataset:
  sources:
    - uri: s3://data/a.jsonl
training:
  epochs: 1
output: {uri: "s3://results/{namespace}/{name}"}
"""


def load_config(tmp_path: Path, text: str) -> TrainerConfig:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return loader.load_manifest(path)


def build_manifest(old: str = "", new: str = "") -> str:
    assert old in SPEC_YAML
    return MANIFEST_HEAD + indent(SPEC_YAML.replace(old, new) if old else SPEC_YAML, "  ")
