"""`finetune plan --local`: the plan of the trainer that is installed beside the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.support.cli.command import run_finetune
from tests.support.trainer.tiny_model import build

pytestmark = [pytest.mark.training, pytest.mark.timeout(180)]

ROWS = [{"prompt": f"How far is {number}?", "completion": f"{number} miles"} for number in range(6)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest whose model and data are folders of this machine, and a number as only YAML 1.2 reads it."""
    folder = tmp_path_factory.mktemp("plan")
    build(folder / "base")
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    path = folder / "job.yaml"
    path.write_text(f"""
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: bot}}
spec:
  model: {{uri: {folder}/base, maxLength: 128}}
  dataset: {{sources: [{{uri: {folder}/train.jsonl}}]}}
  training: {{epochs: 2, learningRate: 2e-4, backend: transformers}}
  output: {{uri: s3://results/bot}}
""")
    return path


def test_plan_local_yaml_is_that_of_trainer(manifest: Path) -> None:
    answer = run_finetune("plan", str(manifest), "--local", "-o", "yaml", "--show-rows", "1")
    assert answer.status == 0, answer.stderr
    plan = yaml.safe_load(answer.stdout)
    assert plan["dataset"]["rows"] == len(ROWS)
    assert "How far is 0?" in json.dumps(plan)


def test_plan_local_endpoint_replaces_that_of_manifest(manifest: Path) -> None:
    content = manifest.read_text().replace("training:", "storage: {endpoint: http://store.invalid}\n  training:")
    other = manifest.with_name("other.yaml")
    other.write_text(content)
    answer = run_finetune("plan", str(other), "--local", "--endpoint", "ftp://nowhere")
    assert answer.status != 0
    assert "storage.endpoint" in answer.stderr
    assert "ftp://nowhere" in answer.stderr


def test_plan_local_invalid_manifest_names_field_and_line(manifest: Path) -> None:
    wrong = manifest.with_name("wrong.yaml")
    wrong.write_text(manifest.read_text().replace("epochs: 2", "epochs: 0"))
    answer = run_finetune("plan", str(wrong), "--local")
    assert answer.status != 0
    assert "spec.training.epochs" in answer.stderr
    assert "Traceback" not in answer.stderr
