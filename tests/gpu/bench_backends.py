"""Compare backends and plain scripts on one GPU, with the same random model, rows and adapter, in separate processes.

    PYTHONPATH=trainer:. python tests/gpu/bench_backends.py [--json OUT] [--backends transformers unsloth]

`trl` and `unsloth-script` run the same training as a short script that uses TRL or Unsloth directly
(`tests/support/trainer/plain_trl_training.py`). No network is needed: the model has the shape of Llama-3.2-1B
(`--shape 8b`: Llama-3.1-8B) with random weights. With `--rows full` (the default) every row has `--length` tokens, as
in published benchmarks; with `--rows mixed` rows have between 1/16 of that and all of it, as in real data. MFU is
relative to the dense bf16 peak of the GPU, and counts neither recomputation nor padding.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tests.gpu import random_model
from tests.support.trainer import plain_trl_training

from finetune_trainer.contract import DatasetReport, Progress, TrainerConfig
from finetune_trainer.telemetry.progress import ProgressReporter

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData

_TIMEOUT_SECONDS = 200
TRAINER_BACKENDS = ("transformers", "unsloth")
SCRIPTS = {"trl": plain_trl_training.load_with_trl, "unsloth-script": plain_trl_training.load_with_unsloth}


@dataclass(frozen=True)
class BackendResult:
    """Measurements of one backend. Speed is measured over the second half of the steps; the first compiles kernels."""

    backend: str
    tokens_per_second: float
    mfu_percent: float | None
    peak_gib: float
    planned_gib: float
    first_loss: float
    last_loss: float
    trainable: int
    load_seconds: float
    seconds: float


@dataclass(frozen=True)
class StepMeasurements:
    """Time in seconds and loss of each step, the trained model, and the peak GPU memory in GiB."""

    times: Sequence[float]
    losses: Sequence[float]
    model: Any
    peak_gib: float
    tokens: int
    """Tokens of all steps, without padding."""


class StepTimeRecorder(ProgressReporter):
    """Records the time and the progress of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, Progress]] = []
        super().__init__()

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        if fields.get("step"):
            self.steps.append((time.monotonic(), self.get_latest()))


def build_config(arguments: argparse.Namespace) -> TrainerConfig:
    """Return the config of the training."""
    return TrainerConfig.model_validate(
        {
            "model": {
                "uri": "s3://bench/model",
                "maxLength": arguments.length,
                "quantization": arguments.quantization,
            },
            "dataset": {"sources": [{"uri": "s3://bench/rows.jsonl"}]},
            "training": {
                "maxSteps": arguments.steps,
                "batchSize": arguments.batch,
                "gradientAccumulation": arguments.accumulation,
                "gradientCheckpointing": not arguments.no_recompute,
                "kernels": arguments.kernels,
                "optimizer": arguments.optimizer,
                "batching": arguments.batching,
            },
            "output": {"uri": "s3://bench/out"},
        }
    )


def run_one(arguments: argparse.Namespace, backend: str) -> BackendResult:
    """Train with one backend in this process."""
    config, started = build_config(arguments), time.monotonic()
    train_backend = _train_with_trainer if backend in TRAINER_BACKENDS else _train_with_script
    sequences = arguments.steps * arguments.batch * arguments.accumulation
    data_rows = 2 * sequences if arguments.batching == "packed" else sequences
    steps, load_seconds = train_backend(
        config, backend, arguments.model, (data_rows, arguments.length, arguments.rows == "mixed")
    )
    trainable, total = steps.model.get_nb_trainable_parameters()
    per_second = _compute_tokens_per_second(steps)
    return BackendResult(
        backend=backend,
        tokens_per_second=round(per_second, 1),
        mfu_percent=_compute_mfu(per_second, (total - trainable, trainable), arguments),
        peak_gib=round(steps.peak_gib, 2),
        planned_gib=round(_estimate_peak(config, arguments.model) / 2**30, 2),
        first_loss=steps.losses[0],
        last_loss=steps.losses[-1],
        trainable=trainable,
        load_seconds=round(load_seconds, 1),
        seconds=round(time.monotonic() - started, 1),
    )


def _train_with_trainer(
    config: TrainerConfig, backend: str, folder: Path, shape: tuple[int, int, bool]
) -> tuple[StepMeasurements, float]:
    """Train as a run does. Return the steps and the seconds of loading the model."""
    from finetune_trainer.modeling import backends, kernels, loading
    from finetune_trainer.training.state import TrainingSession
    from finetune_trainer.training.train import train

    kernels.check_gpu(config)
    backends.import_backend(backend, config.model.quantization)
    started = time.monotonic()
    tokenizer = loading.load_tokenizer(folder)
    loaded = loading.LoadedModel(loading.load_model(config, folder, backend), tokenizer, backend)
    load_seconds = time.monotonic() - started
    recorder = StepTimeRecorder()
    session = TrainingSession(recorder)
    metrics = train(
        config, loaded, _make_prepared_data(random_model.make_rows(*shape)), session, folder.parent / backend
    ).metrics
    losses = [progress.loss or float("nan") for _, progress in recorder.steps]
    peak = metrics.get("peakMemoryBytes", 0) / 2**30
    times = [at for at, _ in recorder.steps]
    return StepMeasurements(times, losses, loaded.model, peak, int(metrics["tokens"])), load_seconds


def _estimate_peak(config: TrainerConfig, model_dir: Path) -> int:
    """Return the peak of the GPU memory in bytes that `plan` estimates."""
    from finetune_trainer.planning.model_shape import compute_model_shape
    from finetune_trainer.training.memory_needs import estimate_memory

    return estimate_memory(config, compute_model_shape(config, model_dir)).total


def _make_prepared_data(data: datasets.Dataset) -> PreparedData:
    from finetune_trainer.data.preparation import PreparedData

    count = len(data)
    report = DatasetReport(rows=count, kept=count, rejected={}, tokens=0, supervised_tokens=0, digest="sha256:0")
    return PreparedData(dataset=data, report=report)


def _train_with_script(
    config: TrainerConfig, backend: str, folder: Path, shape: tuple[int, int, bool]
) -> tuple[StepMeasurements, float]:
    options, started = _convert_options(config), time.monotonic()
    loaded = SCRIPTS[backend](folder, options)
    load_seconds = time.monotonic() - started
    rows = _add_completion_mask(random_model.make_rows(*shape))
    trained = plain_trl_training.train(loaded, rows, folder.parent / backend, options)
    tokens = sum(map(len, rows["input_ids"]))
    return StepMeasurements(trained.times, trained.losses, trained.model, trained.peak / 2**30, tokens), load_seconds


def _convert_options(config: TrainerConfig) -> plain_trl_training.TrainingOptions:
    training, steps = config.training, config.training.max_steps or 1
    return plain_trl_training.TrainingOptions(
        steps=steps,
        batch_size=training.batch_size,
        gradient_accumulation=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        warmup_steps=round(steps * training.warmup_ratio),
        weight_decay=training.weight_decay,
        seed=training.seed,
        max_length=config.model.max_length,
        rank=training.lora.rank,
        alpha=training.lora.alpha,
        nf4=config.model.quantization == "nf4",
        gradient_checkpointing=training.gradient_checkpointing,
        gpu=has_gpu(),
    )


def _add_completion_mask(rows: datasets.Dataset) -> datasets.Dataset:
    """Replace labels by `completion_mask`, which is 1 for supervised tokens, as SFTTrainer expects."""
    return rows.map(
        lambda row: {"completion_mask": [int(label >= 0) for label in row["labels"]]}, remove_columns=["labels"]
    )


def has_gpu() -> bool:
    """Return whether torch can use a GPU."""
    import torch

    return torch.cuda.is_available()


def _compute_tokens_per_second(steps: StepMeasurements) -> float:
    """Return tokens per second of the second half of the steps, as if all steps had the same number of tokens."""
    half = len(steps.times) // 2
    share = (len(steps.times) - half) / len(steps.times)
    return steps.tokens * share / (steps.times[-1] - steps.times[half - 1])


def _compute_mfu(per_second: float, parameters: tuple[int, int], arguments: argparse.Namespace) -> float | None:
    import torch

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    peak = next((value for card, value in random_model.PEAK_TFLOPS.items() if card in name), None)
    flops = random_model.SHAPES[arguments.shape].flops_per_token(*parameters, arguments.length)
    return None if peak is None else round(100 * per_second * flops / (peak * 1e12), 2)


def run_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run each backend in a separate process, because importing Unsloth patches other libraries."""
    results: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        random_model.build(folder, random_model.SHAPES[arguments.shape])
        for backend in arguments.backends:
            out = Path(scratch) / f"{backend}.json"
            child_arguments = [*sys.argv[1:], "--one", backend, "--model", str(folder), "--json", str(out)]
            environment = {**os.environ, "FINETUNE_SCRATCH": scratch, "HF_HUB_OFFLINE": "1"}
            try:
                subprocess.run(
                    [sys.executable, __file__, *child_arguments], env=environment, check=True, timeout=_TIMEOUT_SECONDS
                )
                results.append(json.loads(out.read_text()))
            except subprocess.SubprocessError as error:
                results.append({"backend": backend, "error": str(error)[-300:]})
    return results


def main() -> None:
    """Print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=[*TRAINER_BACKENDS], choices=[*TRAINER_BACKENDS, *SCRIPTS])
    parser.add_argument("--shape", choices=[*random_model.SHAPES], default="1b")
    parser.add_argument("--quantization", choices=["none", "int8", "nf4"], default="none")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rows", choices=["full", "mixed"], default="full")
    parser.add_argument("--kernels", choices=["standard", "liger"], default="standard")
    parser.add_argument("--optimizer", choices=["adamw", "adamw8bit"], default="adamw")
    parser.add_argument("--batching", choices=["padded", "byLength", "paddingFree", "packed"])
    parser.add_argument("--no-recompute", action="store_true", help="keep activations instead of recomputing them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    output = asdict(run_one(arguments, arguments.one)) if arguments.one else run_all(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(output, indent=2))
    if not arguments.one:
        print(json.dumps(output, indent=2))


if __name__ == "__main__":
    main()
