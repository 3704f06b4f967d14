"""`finetune-trainer plan` of a schedule or a sweep counts the steps of all runs and warns about unusual values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.plan_jobs import PlanJobWriter
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, chat

from finetune_trainer.cli.app import build_parser
from finetune_trainer.cli.series import format_series_plan
from finetune_trainer.config.loader import load_manifest, load_template, read_owner
from finetune_trainer.errors import TrainerError
from finetune_trainer.planning.plan import RunResources
from finetune_trainer.planning.series import plan_sweep

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

ROWS = [chat(f"Which lamp {number}?", "The red one. " * 3) for number in range(16)]
SWEEP: dict[str, Any] = {
    "parameters": {"learningRate": {"values": [1e-4, 5e-3]}, "batchSize": {"values": [1, 2]}},
    "output": {"uri": "s3://results/sweep/"},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def job(s3: S3Server, model_dir: Path, tmp_path: Path) -> Path:
    """Write a FineTuneJob of 16 rows and two epochs, four rows per step."""
    writer = PlanJobWriter(s3, tmp_path)
    writer.upload_model(model_dir)
    return writer.write(ROWS, batchSize=2, gradientAccumulation=2)


def _write_owner(job: Path, kind: str, **spec: object) -> Path:
    document = json.loads(job.read_text())
    owner = {**document, "kind": kind, "spec": {"template": {"spec": document["spec"]}, **spec}}
    path = job.with_name(f"{kind}.yaml")
    path.write_text(json.dumps(owner))
    return path


def _print_plan(path: Path, *options: str) -> str:
    args = build_parser().parse_args(["plan", str(path), "--work-dir", str(path.parent), *options])
    owner = read_owner(path)
    assert owner
    return format_series_plan(args, *owner)


@pytest.mark.s3
@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
class TestSeriesPlan:
    """Plans with a real store and a tiny model."""

    def test_plan_sweep_counts_steps_of_all_trials(self, job: Path) -> None:
        plan = json.loads(_print_plan(_write_owner(job, "FineTuneSweep", **SWEEP), "--json"))
        assert (plan["runs"], plan["run"]["steps"]) == (4, 8)
        assert plan["steps"] == 2 * 16 + 2 * 8  # half of the rows per step takes twice the steps
        assert [
            warning for warning in plan["warnings"] if "learningRate 0.005 is outside of 0.0001 to 0.001" in warning
        ]
        assert not [warning for warning in plan["warnings"] if "learningRate 0.0001 " in warning]

    def test_plan_sweep_with_halving_counts_what_is_trained(self, job: Path, tmp_path: Path) -> None:
        spec = {"parameters": {"learningRate": {"values": [1e-4, 2e-4, 3e-4, 5e-4]}}, "halving": {"atSteps": [2, 4]}}
        plan = plan_sweep(spec, load_template(_write_owner(job, "FineTuneSweep", **spec)), tmp_path, RunResources())
        assert plan.steps == 2 * 2 + 4 + 8  # two end after 2 steps and one after 4

    def test_plan_schedule_counts_runs_of_cron_line_and_cost(self, job: Path) -> None:
        path = _write_owner(job, "FineTuneSchedule", schedule="0 3 * * 1")
        lines = _print_plan(path, "--gpu-hour-price", "2.5").splitlines()
        assert lines[0].split() == ["runs", "in", "28", "days", "4"]
        assert lines[1].split() == ["steps", "of", "all", "32"]
        assert [line for line in lines if line.startswith("cost ")]


def test_plan_trial_that_breaks_rule_is_named(tmp_path: Path) -> None:
    spec = {
        "model": {"uri": "s3://models/x"},
        "dataset": {"sources": [{"uri": "s3://data/x.jsonl"}]},
        "training": {"method": "kto", "epochs": 1},
        "output": {"uri": "s3://results/{name}"},
    }
    template = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneSweep", "metadata": {"name": "x"}}
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(template | {"spec": {"template": {"spec": spec}}}))
    parameters = {"parameters": {"batchSize": {"values": [2, 1]}}}
    with pytest.raises(TrainerError, match=r"trial 2 \(batchSize 1\): training: method kto needs a batchSize"):
        plan_sweep(parameters, load_template(path), tmp_path, RunResources())


def test_run_manifest_of_schedule_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schedule.yaml"
    path.write_text("{apiVersion: finetune.dev/v1alpha1, kind: FineTuneSchedule, metadata: {name: x}, spec: {}}")
    with pytest.raises(TrainerError, match="is not a FineTuneJob"):
        load_manifest(path)
