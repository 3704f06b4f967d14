"""What only a GPU shows: both backends on the same work, in bf16, and an adapter that answers as it was trained.

PYTHONPATH=trainer pytest -m gpu tests/gpu
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    # Not torch's word: tests of the same process that run on the CPU hide the GPU from it.
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no GPU"),
]

BENCH = Path(__file__).with_name("bench_backends.py")
ROOT = BENCH.parents[2]


def run(script: Path, *arguments: str, scratch: Path) -> None:
    """In a process of its own, which sees the GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {"PYTHONPATH": f"{ROOT / 'trainer'}:{ROOT}", "HF_HUB_OFFLINE": "1", "FINETUNE_SCRATCH": str(scratch)}
    subprocess.run([sys.executable, str(script), *arguments], env=environment, check=True, timeout=500)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Numbers by backend, of those that are installed."""
    folder = tmp_path_factory.mktemp("bench")
    backends = ["transformers", *(["unsloth"] if find_spec("unsloth") else [])]
    run(BENCH, "--json", str(folder / "out.json"), "--rows", "mixed", "--backends", *backends, scratch=folder)
    return {each["backend"]: each for each in json.loads((folder / "out.json").read_text())}


def test_every_backend_trains(results: dict[str, dict[str, Any]]) -> None:
    assert not [each for each in results.values() if "error" in each]
    for each in results.values():
        assert each["last_loss"] < each["first_loss"]
        assert each["peak_gib"] > 0


def test_both_learn_the_same(results: dict[str, dict[str, Any]]) -> None:
    if len(results) < 2:
        pytest.skip("unsloth is not installed")
    plain, unsloth = results["transformers"], results["unsloth"]
    assert plain["trainable"] == unsloth["trainable"]
    assert plain["first_loss"] == pytest.approx(unsloth["first_loss"], rel=2e-2)
    assert plain["last_loss"] == pytest.approx(unsloth["last_loss"], rel=5e-2)


def test_adapter_trained_on_the_gpu_is_exported_and_answers(tmp_path: Path) -> None:
    """The whole way of `run`, on a tiny model: in bf16 by the backend that `auto` chooses here."""
    run(BENCH.with_name("whole_way.py"), str(tmp_path), scratch=tmp_path)
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["got"] == answers["expected"]
