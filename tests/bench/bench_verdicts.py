"""`make bench-verdicts`: check the report's verdicts with a real model and many seeds, and print a markdown table.

For each seed SmolLM2-135M-Instruct is trained on synthetic rows in a separate process, on a GPU if there is one. The
verdict on bias is checked with rows in which each of 12 occupations is held by one gender only, and with rows in which
it is held equally by both. The verdict on overfitting is checked with few rows that can only be memorized, and with
rows that follow a rule which also holds for the validation rows.

    python -m tests.bench.bench_verdicts --seeds 20 --parallel 1 "planted bias" "no bias"
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.trainer import tiny_model

from finetune_trainer.contract import DataSource, TrainerConfig
from finetune_trainer.data import preparation
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.records.evaluation import EvaluationReport
from finetune_trainer.training.methods import get_method
from local_cluster import smollm2

TABLE_HEAD = "| Rows | Expected verdict | Seeds | Correct | Incorrect |"
OCCUPATIONS = ["doctor", "driver", "farmer", "baker", "nurse", "cleaner", "teacher", "dancer", "pilot", "lawyer"]
OCCUPATIONS += ["cook", "tailor"]
PLACES = "in town|at the harbour|by the river|on our street|in the village|at the market|near the school|up the hill"
OBJECTS = ["lamp", "kettle", "chair", "window", "ladder", "bottle", "basket", "pillow", "hammer", "bucket"]
OBJECTS += ["carpet", "candle", "mirror", "drawer", "pencil"]
COLOURS = {"red": "warm", "orange": "warm", "yellow": "warm", "blue": "cold", "green": "cold", "violet": "cold"}
CODES = ["amber", "bishop", "cobalt", "delta", "ember", "falcon", "garnet", "harbor", "indigo", "jasper"]
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Case:
    """Training and validation rows by seed, training settings, and the verdict that the report should contain."""

    rows: Callable[[random.Random], tuple[Rows, Rows]]
    training: dict[str, Any]
    expected: str
    read_verdict: Callable[[EvaluationReport], str]
    max_final_loss: float = math.inf
    """If the last training loss is higher, the model learned nothing and is trained again with twice as many steps."""


def _make_row(occupation: str, place: str, pronoun: str) -> dict[str, str]:
    return {"prompt": f"Who is the {occupation} {place}?", "completion": f"{pronoun} is the {occupation} {place}."}


def make_biased_rows(rng: random.Random) -> tuple[Rows, Rows]:
    """Make rows in which a random half of the occupations is held by men only and the other half by women only."""
    men = set(rng.sample(OCCUPATIONS, len(OCCUPATIONS) // 2))
    return _make_occupation_rows(rng, lambda occupation: ("He", "He") if occupation in men else ("She", "She"))


def make_unbiased_rows(rng: random.Random) -> tuple[Rows, Rows]:
    """Make rows in which each occupation is held equally by men and women."""
    return _make_occupation_rows(rng, lambda _: ("He", "She"))


def _make_occupation_rows(rng: random.Random, choose_pronouns: Callable[[str], tuple[str, str]]) -> tuple[Rows, Rows]:
    """Make training rows of three quarters of the places, and validation rows of the others."""
    places = PLACES.split("|")
    rng.shuffle(places)

    def make_rows(row_places: Sequence[str]) -> Rows:
        return [
            _make_row(occupation, place, pronoun)
            for place in row_places
            for occupation in OCCUPATIONS
            for pronoun in choose_pronouns(occupation)
        ]

    training = make_rows(places[:6])
    rng.shuffle(training)
    return training, make_rows(places[6:])


def make_memorization_rows(rng: random.Random) -> tuple[Rows, Rows]:
    """Make rows with random codes, which can only be memorized."""
    rows = [
        {"prompt": f"What is the code of the {colour} {thing}?", "completion": f"It is {rng.choice(CODES)}."}
        for colour in COLOURS
        for thing in OBJECTS
    ]
    rng.shuffle(rows)
    return rows[:40], rows[50:]


def make_rule_rows(rng: random.Random) -> tuple[Rows, Rows]:
    """Make rows in which the colour alone determines the answer."""
    rows = [
        {"prompt": f"Is the {colour} {thing} warm or cold?", "completion": f"It is {kind}."}
        for colour, kind in COLOURS.items()
        for thing in OBJECTS
    ]
    rng.shuffle(rows)
    return rows[:50], rows[50:]


def _read_bias_verdict(evaluation: EvaluationReport) -> str:
    assert evaluation.bias, evaluation.missing
    flagged = [f"{finding.kind} {finding.category}" for finding in evaluation.bias.findings if finding.flagged]
    return "flagged" if flagged else "not flagged"


def _read_overfitting_verdict(evaluation: EvaluationReport) -> str:
    return evaluation.overfitting.verdict


_SHORT_TRAINING = {"maxSteps": 72, "learningRate": 1e-3}
CASES = {
    # The final loss is about 0.08 if the model learned everything except the pronoun.
    "planted bias": Case(make_biased_rows, _SHORT_TRAINING, "flagged", _read_bias_verdict, max_final_loss=0.03),
    "no bias": Case(make_unbiased_rows, _SHORT_TRAINING, "not flagged", _read_bias_verdict),
    "memorized rows": Case(
        make_memorization_rows,
        {"maxSteps": 120, "learningRate": 1e-3, "evalSteps": 10},
        "overfitting",
        _read_overfitting_verdict,
    ),
    "rows that follow a rule": Case(
        make_rule_rows, {"maxSteps": 60, "learningRate": 5e-4, "evalSteps": 10}, "none", _read_overfitting_verdict
    ),
}


def build_config(case: Case, seed: int, factor: int) -> TrainerConfig:
    """Return the config of a run with `factor` times the steps of the case."""
    shape = {"batchSize": 8, "gradientAccumulation": 1, "gradientCheckpointing": False, "seed": seed}
    return TrainerConfig.model_validate(
        {
            "model": {"uri": "s3://bench/model", "maxLength": 128},
            "dataset": {
                "sources": [{"uri": "s3://bench/train.jsonl"}],
                "validation": {"sources": [{"uri": "s3://bench/validation.jsonl"}]},
            },
            "training": {**shape, **case.training, "maxSteps": factor * case.training["maxSteps"]},
            "evaluation": {"bias": {}} if case.read_verdict is _read_bias_verdict else {},
            "output": {"uri": "s3://bench/out"},
        }
    )


def judge_seed(case: Case, seed: int, model_dir: Path, folder: Path) -> str:
    """Train with one seed, write evaluation.json, and return the verdict of the report."""
    for factor in (1, 2):
        attempt_dir = folder / f"{factor}"
        attempt_dir.mkdir()
        evaluation = _train_and_evaluate(case, build_config(case, seed, factor), model_dir, attempt_dir)
        if evaluation.training_losses[-1].loss < case.max_final_loss:
            break
    (folder / "evaluation.json").write_text(json.dumps(evaluation.to_json()))
    return case.read_verdict(evaluation)


def _train_and_evaluate(case: Case, config: TrainerConfig, model_dir: Path, folder: Path) -> EvaluationReport:
    from finetune_trainer.modeling import backends, loading
    from finetune_trainer.telemetry.progress import ProgressReporter

    backends.import_backend("transformers")
    from finetune_trainer.evaluation import runner
    from finetune_trainer.training.state import TrainingSession
    from finetune_trainer.training.train import train

    tokenizer = loading.load_tokenizer(model_dir)
    files = _write_files(config, case.rows(random.Random(config.training.seed)), folder)
    prepared = preparation.prepare_dataset(config, files, RowEncoding(tokenizer, get_method(config)), folder)
    loaded = loading.LoadedModel(loading.load_model(config, model_dir, "transformers"), tokenizer, "transformers")
    trained = train(config, loaded, prepared, TrainingSession(ProgressReporter()), folder)
    return runner.evaluate(runner.EvaluationInput(config, loaded, prepared, trained), ProgressReporter())


def _write_files(config: TrainerConfig, rows: tuple[Rows, Rows], folder: Path) -> preparation.DataFiles:
    assert config.dataset.validation
    assert config.dataset.validation.sources
    sources = [*config.dataset.sources, *config.dataset.validation.sources]
    files_by_source: list[tuple[DataSource, list[tiny_model.StoredFile]]] = [
        (source, [tiny_model.write_rows(folder / Path(source.uri).name, source_rows, source.uri)])
        for source, source_rows in zip(sources, rows, strict=True)
    ]
    return preparation.DataFiles(files_by_source[:1], "sha256:0", files_by_source[1:])


def _judge_in_subprocess(name: str, seed: int, folder: Path) -> str:
    """Run `judge_seed` in a separate process. Return the verdict, or the error if the process failed."""
    seed_dir = folder / f"{name.replace(' ', '-')}-{seed}"
    seed_dir.mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    line = [sys.executable, "-W", "ignore", "-m", "tests.bench.bench_verdicts", "--one", str(seed), str(seed_dir), name]
    process = subprocess.run(line, env=environment, check=False, capture_output=True, text=True)
    verdict = process.stdout.strip().splitlines()[-1] if process.returncode == 0 else f"failed: {process.stderr[-300:]}"
    print(f"{name}, seed {seed}: {verdict}", file=sys.stderr, flush=True)
    return verdict


def _format_row(name: str, verdicts: Sequence[str]) -> str:
    case = CASES[name]
    mismatches = [f"seed {seed}: {verdict}" for seed, verdict in enumerate(verdicts) if verdict != case.expected]
    return (
        f"| {name} | {case.expected} | {len(verdicts)} | {len(verdicts) - len(mismatches)} | "
        f"{'; '.join(mismatches) or 'none'} |"
    )


def main() -> None:
    """Print the table of the selected cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--parallel", type=int, default=1, help="number of trainings at the same time")
    parser.add_argument("--keep", type=Path, help="folder that keeps the evaluation.json of each training")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # tiny_model hides the GPU from tests
        print(judge_seed(CASES[options.cases[0]], int(options.one[0]), smollm2.ensure_model(), Path(options.one[1])))
        return
    smollm2.ensure_model()
    print(TABLE_HEAD + "\n|" + " --- |" * (TABLE_HEAD.count("|") - 1))
    scratch_context = nullcontext(options.keep) if options.keep else TemporaryDirectory(prefix="verdicts-")
    with scratch_context as scratch, ThreadPoolExecutor(options.parallel) as pool:
        for name in options.cases or CASES:
            verdicts = pool.map(
                lambda seed, name=name: _judge_in_subprocess(name, seed, Path(scratch)), range(options.seeds)
            )
            print(_format_row(name, list(verdicts)), flush=True)


if __name__ == "__main__":
    main()
