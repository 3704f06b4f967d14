"""Tests of `chat --local`: a run of a real API server, and the real server of the models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.cli.cluster import ClusterNamespace
from tests.support.cli.command import Answer, run_finetune
from tests.support.operator.builders import build_manifest
from tests.support.operator.schedule_samples import build_result

pytestmark = [pytest.mark.cluster, pytest.mark.training, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
BUILD_MODELS = """
import json, sys
from pathlib import Path
from tests.support.trainer.tiny_model import build, config
from tests.support.trainer.tuned_model import load_tuned_model
from finetune_trainer.modeling.generation import generate_completions
folder = Path(sys.argv[1])
base, adapter = build(folder / "models" / "base"), folder / "adapter"
tuned = load_tuned_model(config(), base)
tuned.model.save_pretrained(adapter)
tuned.tokenizer.save_pretrained(adapter)
paths = {"base": None, "tuned": adapter}
answers = {name: generate_completions(base, path, ["Is it on?"], 8)[0] for name, path in paths.items()}
(folder / "answers.json").write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base model, an adapter, and the answers of `generate_completions`."""
    folder = tmp_path_factory.mktemp("models")
    subprocess.run(
        [sys.executable, "-c", BUILD_MODELS, folder], cwd=ROOT, check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return folder


def chat(namespace: ClusterNamespace, models: Path, *arguments: str, stdin: str = "") -> Answer:
    """Run `chat` for the run `bot`, whose base model is on a claim that this machine has as a folder."""
    spec = {"model": {"uri": "pvc://models/base"}}
    status = {"phase": "Complete", "result": {**build_result("bot"), "adapterURI": str(models / "adapter")}}
    namespace.create("finetunejobs", build_manifest("bot", namespace.name, spec), status)
    environment = {"KUBECONFIG": str(namespace.admin_kubeconfig), "FINETUNE_CLAIMS_DIR": str(models)}
    return run_finetune("chat", "bot", "--local", "--max-tokens", "8", *arguments, stdin=stdin, environment=environment)


def test_chat_prompt_answers_are_those_of_generate(namespace: ClusterNamespace, models: Path) -> None:
    answer = chat(namespace, models, "--base", "--prompt", "Is it on?", "-o", "json")
    assert answer.status == 0, answer.stderr
    expected = json.loads((models / "answers.json").read_text())
    assert expected["base"] != expected["tuned"]
    assert json.loads(answer.stdout) == {"prompt": "Is it on?", **expected}


def test_chat_conversation_can_be_reset(namespace: ClusterNamespace, models: Path) -> None:
    from finetune_trainer.text import escape_invisible

    answer = chat(namespace, models, stdin="Is it on?\nAnd now?\n/reset\nIs it on?\n/exit\nnever\n")
    assert answer.status == 0, answer.stderr
    tuned = escape_invisible(json.loads((models / "answers.json").read_text())["tuned"])
    assert answer.stdout.startswith(f"{tuned}\n")
    assert answer.stdout.endswith(f"\n{tuned}\n")
    assert answer.stderr.count("first answer after") == 1
