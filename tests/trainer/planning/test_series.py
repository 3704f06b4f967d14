"""`finetune-trainer plan` of a schedule or a sweep counts the steps of all runs and warns about unusual values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.plan_jobs import PlanJobWriter
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, chat

from finetune_operator.api.sweep import FineTuneSweepSpec
from finetune_trainer.cli.app import build_parser
from finetune_trainer.cli.series import format_series_plan
from finetune_trainer.config.loader import load_manifest, load_template, read_owner
from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.planning.plan import RunResources
from finetune_trainer.planning.series import SeriesPlan, count_runs, plan_sweep
from finetune_trainer.planning.sweep_settings import SweepSettings

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

ROWS = [chat(f"Which lamp {number}?", "The red one. " * 3) for number in range(16)]
HELD_OUT_URI = "s3://data/held-out.jsonl"
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
    s3.put(HELD_OUT_URI, json.dumps(chat("Which chair?", "The blue one.")).encode())
    return writer.write(ROWS, batchSize=2, gradientAccumulation=2)


def _write_owner(job: Path, kind: str, **spec: object) -> Path:
    document = json.loads(job.read_text())
    dataset = {**document["spec"]["dataset"], "validation": {"sources": [{"uri": HELD_OUT_URI}]}}
    run = {**document["spec"], "dataset": dataset, "output": {"uri": "s3://results/{name}"}}
    owner = {**document, "kind": kind, "spec": {"template": {"spec": run}, **spec}}
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
        (warning,) = [each for each in plan["warnings"] if "learningRate 0.005 is outside of 0.0001" in each]
        assert warning.startswith("trials 3, 4: ")
        assert not [warning for warning in plan["warnings"] if "learningRate 0.0001 " in warning]

    def test_plan_sweep_with_halving_counts_what_is_trained(self, job: Path, tmp_path: Path) -> None:
        rates = {"parameters": {"learningRate": {"values": [1e-4, 2e-4, 3e-4, 5e-4]}}}
        plan = _plan_sweep(_write_owner(job, "FineTuneSweep", **SWEEP | rates, halving={"atSteps": [2, 4]}), tmp_path)
        assert plan.steps == 2 * 2 + 4 + 8  # two end after 2 steps and one after 4
        assert not [warning for warning in plan.warnings if "halving" in warning]

    def test_plan_sweep_with_halving_of_seeds_ends_whole_configurations(self, job: Path, tmp_path: Path) -> None:
        settings = {"parameters": {"learningRate": {"values": [1e-4, 2e-4, 3e-4]}}, "seeds": 2}
        plan = _plan_sweep(
            _write_owner(job, "FineTuneSweep", **SWEEP | settings, halving={"atSteps": [1, 8]}), tmp_path
        )
        assert plan.steps == 2 * (1 + 8 + 8)  # one of three configurations ends
        late, early = [warning for warning in plan.warnings if "halving" in warning]
        assert "atSteps 8: trials have 8 steps" in late
        assert "first quarter" in early
        assert len([warning for warning in plan.warnings if "8 steps are few" in warning]) == 1

    def test_plan_schedule_counts_runs_of_cron_line_and_cost(self, job: Path) -> None:
        path = _write_owner(job, "FineTuneSchedule", schedule="0 3 * * 1")
        lines = _print_plan(path, "--gpu-hour-price", "2.5").splitlines()
        assert lines[0].split() == ["runs", "in", "28", "days", "4"]
        assert lines[1].split() == ["steps", "of", "all", "32"]
        assert [line for line in lines if line.startswith("cost ")]


def _plan_sweep(path: Path, folder: Path) -> SeriesPlan:
    owner = read_owner(path)
    assert owner
    return plan_sweep(owner[1], load_template(path), folder, RunResources())


def _write_sweep(folder: Path, training: dict[str, Any] | None = None, **spec: object) -> Path:
    run = {
        "model": {"uri": "s3://models/x"},
        "dataset": {"sources": [{"uri": "s3://data/x.jsonl"}], "validation": {"fraction": 0.1}},
        "training": training or {"epochs": 1},
        "output": {"uri": spec.pop("uri", "s3://results/{name}")},
    }
    sweep = {"template": {"spec": run}, "output": {"uri": "s3://results/sweep/"}, **spec}
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneSweep", "metadata": {"name": "x"}}
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(head | {"spec": sweep}))
    return path


def test_plan_trial_that_breaks_rule_is_named(tmp_path: Path) -> None:
    path = _write_sweep(tmp_path, {"method": "kto", "epochs": 1}, parameters={"batchSize": {"values": [2, 1]}})
    with pytest.raises(TrainerError, match=r"trial 2 \(batchSize 1\): training: method kto needs a batchSize"):
        _plan_sweep(path, tmp_path)


RANDOM = {"type": "random", "trials": 3}
WRONG_SWEEPS: list[tuple[dict[str, Any], str]] = [
    ({"seeds": 0}, "spec.seeds: Input should be greater than or equal to 1"),
    ({"maxParalel": 2}, "spec.maxParalel: there is no such field"),
    ({"parameters": {"learningRate": [1e-4]}}, "spec.parameters.learningRate: a mapping is required"),
    ({"parameters": {"lr": {"values": [1e-4]}}}, "spec.parameters.lr: there is no such field"),
    ({"parameters": {"learningRate": {"values": [1e-4, 1e-4]}}}, "values must be different"),
    ({"parameters": {"learningRate": {"min": 1e-3, "max": 1e-4}}, "search": RANDOM}, "min must be less than max"),
    ({"parameters": {"loraDropout": {"min": 0, "max": 0.5, "scale": "log"}}, "search": RANDOM}, "greater than 0"),
    ({"parameters": {"learningRate": {"min": 1e-4, "max": 1e-3}}}, "min and max need search.type random"),
    ({"parameters": {"loraRank": {"values": [*range(1, 31)]}}, "seeds": 4}, "more than 100 trials"),
    ({"search": {"type": "random"}}, "spec.search: search.type random needs trials"),
    ({"objective": {"metric": "accuracy"}}, "the trials do not measure objective.metric"),
    ({"halving": {"atSteps": [4]}, "parameters": {"batchSize": {"values": [1, 2]}}}, "halving compares losses"),
    ({"uri": "s3://results/bot"}, "must contain {name}"),
]


@pytest.mark.parametrize(("spec", "message"), WRONG_SWEEPS)
def test_plan_sweep_that_the_api_server_rejects_is_refused(spec: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=re.escape(message)) as raised:
        _plan_sweep(_write_sweep(tmp_path, **spec), tmp_path)
    assert raised.value.reason is Reason.CONFIG_INVALID


def test_plan_mistake_in_a_template_is_named_with_its_path(tmp_path: Path) -> None:
    path = _write_sweep(tmp_path, uri="results/{name}")  # the sweep has an output of its own
    with pytest.raises(TrainerError, match=r"spec\.template\.spec\.output: uri must be s3://.* \(line 1\)"):
        _plan_sweep(path, tmp_path)


def test_plan_settings_are_all_fields_of_a_sweep() -> None:
    assert SweepSettings.model_fields.keys() == FineTuneSweepSpec.model_fields.keys()


def test_run_manifest_of_schedule_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schedule.yaml"
    path.write_text("{apiVersion: finetune.dev/v1alpha1, kind: FineTuneSchedule, metadata: {name: x}, spec: {}}")
    with pytest.raises(TrainerError, match="is not a FineTuneJob"):
        load_manifest(path)


@pytest.mark.parametrize("line", ["0 0 3 * * 1", "@every 1h", "0 3 L * *", "61 3 * * *"])
def test_plan_cron_line_that_the_operator_refuses_is_refused(line: str) -> None:
    with pytest.raises(TrainerError, match=re.escape(line)):
        count_runs(line)
