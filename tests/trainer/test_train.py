"""Training a tiny model: what is learnt, what is reported, what stops it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.tiny_model import QUIET, TRAINING_SECONDS, build, chat, config, write_rows

from finetune_trainer.contract import DatasetReport, Progress, Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.training.train import Step, Watch, total_steps

ROWS = [chat(f"What is {number}?", f"It is {'very ' * (number % 5)}{number}.") for number in range(10)]


class Recorder(ProgressReporter):
    """Keeps all that was reported."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []
        super().__init__()

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        self.seen.append(self.latest())


def step(number: int, total: int = 10, loss: float = 1.0, **logs: float) -> Step:
    return Step(number, total, number / total, number * 100, {"loss": loss, **logs})


class TestWatch:
    """Progress and its limits, without torch."""

    @pytest.fixture
    def progress(self) -> Recorder:
        return Recorder()

    def test_reports_pace_and_what_is_left(self, progress: Recorder) -> None:
        clock = count(100, 2)
        watch = Watch(progress, clock=lambda: next(clock))
        watch.begin(10)
        assert (progress.latest().stage, progress.latest().total_steps) == (Stage.TRAINING, 10)
        for number in range(1, 5):
            watch.step(step(number))
        latest = progress.latest()
        assert (latest.step, latest.percentage, latest.epoch, latest.loss) == (4, 40, 0.4, 1.0)
        assert (latest.tokens_per_second, latest.estimated_remaining_seconds) == (50.0, 12)

    def test_is_at_99_percent_until_published(self, progress: Recorder) -> None:
        watch = Watch(progress)
        watch.begin(1)
        watch.step(step(1, 1))
        assert (progress.latest().percentage, progress.latest().estimated_remaining_seconds) == (99, 0)

    @pytest.mark.parametrize("bad", [{"loss": math.nan}, {"loss": math.inf}, {"loss": 1.0, "grad_norm": math.nan}])
    def test_third_step_in_a_row_without_number_ends_the_run(self, progress: Recorder, bad: dict[str, float]) -> None:
        watch = Watch(progress)
        watch.begin(10)
        for number, fields in enumerate([bad, bad, {"loss": 1.0}, bad, bad], start=1):
            watch.step(step(number, 10, **fields))
        with pytest.raises(TrainerError, match=r"up to step 6 of 10; lower training\.learningRate") as caught:
            watch.step(step(6, 10, **bad))
        assert caught.value.reason is Reason.NON_FINITE_LOSS
        json.dumps(progress.latest().to_json(), allow_nan=False)

    def test_scaled_gradients_may_overflow(self, progress: Recorder) -> None:
        watch = Watch(progress, scaled=True)
        watch.begin(10)
        for number in range(1, 9):
            watch.step(step(number, grad_norm=math.inf))

    def test_a_run_that_ends_without_number_failed(self, progress: Recorder) -> None:
        watch = Watch(progress)
        watch.begin(1)
        watch.step(step(1, 1, math.nan))
        with pytest.raises(TrainerError) as caught:
            watch.end()
        assert caught.value.reason is Reason.NON_FINITE_LOSS

    def test_logs_every_twentieth_at_most(self, progress: Recorder, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "finetune_trainer.training.train")
        watch = Watch(progress, clock=lambda: 0.0)
        watch.begin(1000)
        for number in range(1, 1001):
            watch.step(step(number, 1000))
        assert 20 <= len(caplog.messages) <= 22
        assert caplog.messages[-1].startswith("step 1000/1000 loss 1.0000")


@dataclass(frozen=True)
class Trained:
    metrics: dict[str, float]
    progress: list[Progress]
    report: DatasetReport
    weights: dict[str, Any]

    @property
    def losses(self) -> list[float]:
        return [each.loss for each in self.progress if each.loss is not None]


Run = Callable[..., Trained]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(model_dir: Path, tmp_path: Path) -> Run:
    from finetune_trainer.data import preparing
    from finetune_trainer.models import model
    from finetune_trainer.training import train

    def run(
        rows: list[Any] = ROWS,
        base: Path = model_dir,
        progress: Recorder | None = None,
        others: dict[str, Any] | None = None,
        **training: Any,
    ) -> Trained:
        settings, progress = config(training), progress or Recorder()
        model.import_backend("transformers")
        words = model.load_tokenizer(base)
        sources = [(settings.dataset.sources[0], [write_rows(tmp_path / "rows", rows)])]
        prepared = preparing.prepare(settings, preparing.Files(sources, "sha256:0"), words, tmp_path)
        loaded = model.Loaded(model.load_model(settings, base, "transformers"), words, "transformers")
        metrics = train.train(settings, loaded, prepared, train.Session(progress, **(others or {})), tmp_path)
        weights = {name: value.detach().clone() for name, value in loaded.model.named_parameters()}
        return Trained(metrics, progress.seen, prepared.report, weights)

    return run


@pytest.mark.training
@pytest.mark.timeout(TRAINING_SECONDS)
class TestTrain:
    def test_every_row_and_learnt_token_of_the_report_is_trained_each_epoch(self, run: Run) -> None:
        long = chat("x " * 40, "y " * 30)  # beyond TRL's own limits nothing is cut either
        trained = run([*ROWS, long], maxSteps=None, epochs=2, batchSize=2, gradientAccumulation=2)
        assert trained.metrics["tokens"] == 2 * trained.report.tokens
        assert trained.metrics["supervisedTokens"] == 2 * trained.report.supervised_tokens
        assert trained.metrics["steps"] == 6

    def test_reports_each_step(self, run: Run, tmp_path: Path) -> None:
        trained = run(maxSteps=5)
        steps = [each for each in trained.progress if each.step]
        assert [each.step for each in steps] == [1, 2, 3, 4, 5]
        assert [each.percentage for each in steps] == [20, 40, 60, 80, 99]
        assert all(each.tokens_per_second for each in steps)
        assert trained.losses[-1] == trained.metrics["finalLoss"]
        assert trained.metrics["trainLoss"] == pytest.approx(sum(trained.losses) / 5)
        assert not list((tmp_path / "trainer").rglob("*"))  # nothing of TRL's own is left behind

    def test_learns(self, run: Run) -> None:
        trained = run(maxSteps=30, batchSize=10, gradientAccumulation=1)
        assert trained.metrics["finalLoss"] < 0.8 * trained.losses[0]

    def test_only_the_adapter_changes(self, run: Run, model_dir: Path) -> None:
        from safetensors.torch import load_file

        base = load_file(model_dir / "model.safetensors")
        trained = run(maxSteps=3)
        for name, before in base.items():
            stem, _, last = name.removeprefix("model.").rpartition(".")
            after = [w for n, w in trained.weights.items() if f"{stem}.base_layer.{last}" in n or n.endswith(name)]
            assert all((before == each).all() for each in after), name
        assert all(each.any() for name, each in trained.weights.items() if "lora_B" in name)

    def test_same_seed_same_adapter_other_seed_another(self, run: Run) -> None:
        first, second, other = (run(lora={"dropout": 0.1}, seed=seed) for seed in (7, 7, 8))
        assert first.losses == second.losses != other.losses
        assert all((first.weights[name] == second.weights[name]).all() for name in first.weights)

    def test_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(self, run: Run, tmp_path: Path) -> None:
        from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

        class Saver(TrainerCallback):  # type: ignore[misc]
            def on_step_end(
                self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any
            ) -> None:
                control.should_save = state.global_step == 3

        settings = {"maxSteps": 6, "lora": {"dropout": 0.1}}
        whole = run(others={"callbacks": [Saver()]}, **settings)
        rest = run(others={"resume_from": tmp_path / "trainer" / "checkpoint-3"}, **settings)
        assert rest.losses == whole.losses[3:]
        assert all((rest.weights[name] == whole.weights[name]).all() for name in whole.weights)
        assert rest.metrics["tokens"] == whole.metrics["tokens"]
        assert [each.step for each in rest.progress if each.step] == [3, 4, 5, 6]

    def test_accumulation_does_not_change_the_loss(self, run: Run) -> None:
        # Rows of unlike length: a mean of batches' means would differ.
        shape = {"gradientCheckpointing": False, "maxSteps": 4}
        whole = run(batchSize=4, gradientAccumulation=1, **shape)
        parts = run(batchSize=1, gradientAccumulation=4, **shape)
        assert parts.losses == pytest.approx(whole.losses, abs=2e-4)

    def test_recomputing_activations_changes_nothing(self, run: Run) -> None:
        losses = [run(gradientCheckpointing=on).losses for on in (True, False)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)

    @pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
    def test_one_step_is_not_spent_on_warming_up(self, run: Run, scheduler: str) -> None:
        trained = run(maxSteps=1, scheduler=scheduler, warmupRatio=0.5)
        assert any(each.any() for name, each in trained.weights.items() if "lora_B" in name)

    def test_bf16_on_a_cpu(self, run: Run) -> None:
        assert math.isfinite(run(maxSteps=2, precision="bf16").metrics["finalLoss"])

    def test_a_loss_that_is_no_number_ends_the_run(self, run: Run, model_dir: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        broken = shutil.copytree(model_dir, tmp_path / "broken")
        weights = load_file(broken / "model.safetensors")
        weights["model.norm.weight"][0] = math.nan
        save_file(weights, broken / "model.safetensors", {"format": "pt"})
        progress = Recorder()
        with pytest.raises(TrainerError, match="up to step 3 of 9") as caught:
            run(maxSteps=9, base=broken, progress=progress)
        assert caught.value.reason is Reason.NON_FINITE_LOSS
        assert [each.loss for each in progress.seen if each.step] == [None] * 3  # no made-up number is shown

    @pytest.mark.parametrize(
        "shape",
        [
            {"epochs": 1, "batchSize": 3, "gradientAccumulation": 2},
            {"epochs": 2.5, "batchSize": 4, "gradientAccumulation": 1},
            {"epochs": 0.1, "batchSize": 8, "gradientAccumulation": 8},
        ],
    )
    def test_steps_are_known_beforehand(self, run: Run, shape: dict[str, Any]) -> None:
        training = config({"maxSteps": None, **shape}).training
        assert run(maxSteps=None, **shape).metrics["steps"] == total_steps(training, len(ROWS))


IN_A_PROCESS_OF_ITS_OWN = """
import json, sys
from pathlib import Path
from tests.trainer.test_train import ROWS, Recorder
from tests.trainer.tiny_model import config, write_rows
from finetune_trainer.data import preparing
from finetune_trainer.output import export
from finetune_trainer.models import model
from finetune_trainer.training import train

backend, model_dir, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
settings, progress = config({"batchSize": 2, "gradientAccumulation": 2, "backend": backend}), Recorder()
model.import_backend(model.choose_backend(settings))
words = model.load_tokenizer(model_dir)
sources = [(settings.dataset.sources[0], [write_rows(folder / "rows", ROWS)])]
prepared = preparing.prepare(settings, preparing.Files(sources, "sha256:0"), words, folder)
loaded = model.Loaded(model.load_model(settings, model_dir, backend), words, backend)
metrics = train.train(settings, loaded, prepared, train.Session(progress), folder)
export.export(settings, loaded, folder / "adapter", "sha256:abc")
result = {
    "metrics": metrics,
    "losses": [each.loss for each in progress.seen if each.step],
    "trainable": loaded.model.get_nb_trainable_parameters()[0],
}
(folder / "result.json").write_text(json.dumps(result))
"""


def in_a_process_of_its_own(backend: str, model_dir: Path, folder: Path) -> dict[str, Any]:
    """Unsloth changes the libraries of the whole process that imports it."""
    folder.mkdir()
    root = Path(__file__).parents[2]
    environment = {**os.environ, **QUIET, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": f"{root}:{root / 'trainer'}", "FINETUNE_SCRATCH": str(folder)}
    command = [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, backend, str(model_dir), str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


@pytest.mark.training
@pytest.mark.timeout(2 * TRAINING_SECONDS)
def test_both_backends_learn_the_same(model_dir: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    results, keys, settings = {}, {}, {}
    for backend in ("transformers", "unsloth"):
        folder = tmp_path / backend
        results[backend] = in_a_process_of_its_own(backend, model_dir, folder)
        with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as weights:
            keys[backend] = {key: weights.get_slice(key).get_shape() for key in weights.offset_keys()}
        settings[backend] = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        assert not [path for path in folder.iterdir() if path.name == "unsloth_compiled_cache" and path.is_file()]
    plain, unsloth = results["transformers"], results["unsloth"]
    assert plain["trainable"] == unsloth["trainable"]
    assert keys["transformers"] == keys["unsloth"]
    assert settings["transformers"] == settings["unsloth"]
    assert plain["losses"][0] == pytest.approx(unsloth["losses"][0], abs=1e-4)
    assert plain["losses"] == pytest.approx(unsloth["losses"], abs=1e-2)
    for name in ("tokens", "supervisedTokens", "steps"):
        assert plain["metrics"][name] == unsloth["metrics"][name]
