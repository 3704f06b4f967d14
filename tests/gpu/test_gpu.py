"""Tests that need a GPU: both backends on the same rows, all training variants in bf16, and a complete run.

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
from tests.gpu import training_variants

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    # torch is not asked, because tests on the CPU in the same process hide the GPU from it.
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no GPU"),
]

BACKENDS = ["transformers", *(["unsloth"] if find_spec("unsloth") else [])]
BENCH = Path(__file__).with_name("bench_backends.py")
ROOT = BENCH.parents[2]


def run_script(script: Path, *arguments: str, scratch: Path) -> None:
    """Run a script in a separate process that sees the GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    paths = os.pathsep.join([str(ROOT / "trainer"), str(ROOT), environment.get("PYTHONPATH", "")])
    environment |= {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "FINETUNE_SCRATCH": str(scratch)}
    subprocess.run([sys.executable, str(script), *arguments], env=environment, check=True, timeout=500)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the measurements of each installed backend."""
    folder = tmp_path_factory.mktemp("bench")
    run_script(BENCH, "--json", str(folder / "out.json"), "--rows", "mixed", "--backends", *BACKENDS, scratch=folder)
    return {result["backend"]: result for result in json.loads((folder / "out.json").read_text())}


def test_backend_mixed_rows_loss_falls(results: dict[str, dict[str, Any]]) -> None:
    assert not [result for result in results.values() if "error" in result]
    for result in results.values():
        assert result["last_loss"] < result["first_loss"]
        assert result["peak_gib"] > 0


def test_backends_same_rows_reach_same_loss(results: dict[str, dict[str, Any]]) -> None:
    if len(results) < 2:
        pytest.skip("unsloth is not installed")
    plain, unsloth = results["transformers"], results["unsloth"]
    assert plain["trainable"] == unsloth["trainable"]
    assert plain["first_loss"] == pytest.approx(unsloth["first_loss"], rel=2e-2)
    assert plain["last_loss"] == pytest.approx(unsloth["last_loss"], rel=5e-2)


ALL_VARIANTS = [(backend, way) for backend in BACKENDS for way in training_variants.VARIANTS[backend]]


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the results of each training variant, by backend."""
    results = {}
    for backend in BACKENDS:
        folder = tmp_path_factory.mktemp(backend)
        run_script(Path(training_variants.__file__), backend, str(folder), scratch=folder)
        results[backend] = json.loads((folder / "results.json").read_text())
    return results


@pytest.mark.parametrize(("backend", "way"), ALL_VARIANTS, ids=[" ".join(variant) for variant in ALL_VARIANTS])
def test_training_variant_on_gpu_learns(ways: dict[str, dict[str, Any]], backend: str, way: str) -> None:
    result = ways[backend][way]
    assert "error" not in result, result["error"]
    assert result["losses"][-1] < 0.8 * result["losses"][1]
    assert result["missing"] == []
    assert all(accuracy >= 0.9 for accuracy in result["accuracy"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_resume_on_gpu_matches_uninterrupted_losses(ways: dict[str, dict[str, Any]], backend: str) -> None:
    losses = ways[backend]["resumed"]
    assert losses["resumed"] == pytest.approx(losses["uninterrupted"], rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_too_little_gpu_memory_names_setting_to_lower(ways: dict[str, dict[str, Any]], backend: str) -> None:
    assert ways[backend]["starved"]["error"].startswith("OutOfMemory: ")
    assert "lower training.batchSize" in ways[backend]["starved"]["error"]


def test_energy_counter_matches_measured_power(tmp_path: Path) -> None:
    """Compare the energy counter of the GPU with the power that NVML reports during the work."""
    run_script(BENCH.with_name("energy.py"), str(tmp_path), scratch=tmp_path)
    measured = json.loads((tmp_path / "energy.json").read_text())
    assert "1 GPU" in measured["message"] or measured["gpus"] > 1
    assert measured["watt_hours"] == pytest.approx(measured["expected"], rel=0.2)


def test_adapter_trained_on_gpu_exports_and_answers(tmp_path: Path) -> None:
    """Run all steps of `finetune-trainer run` on a tiny model in bf16, with the backend that `auto` chooses."""
    run_script(BENCH.with_name("end_to_end.py"), str(tmp_path), scratch=tmp_path)
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["got"] == answers["expected"]
