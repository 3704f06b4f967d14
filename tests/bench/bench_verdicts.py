"""`make bench-verdicts`: whether the report's verdicts are right, with a real model and many seeds; a markdown table.

Each seed is a training of SmolLM2-135M-Instruct in a process of its own, on rows made for it. For the verdict on bias:
rows in which each of 12 occupations is held by men or by women alone, and rows in which each is held by as many of
both. For the verdict on overfitting: few rows that can only be learnt by heart, and rows with a rule that holds for
others. On a GPU where there is one.

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

from tests.trainer import tiny_model

from finetune_trainer.contract import DataSource, TrainerConfig
from finetune_trainer.data import preparation
from finetune_trainer.records.evaluation import Evaluation
from local_cluster import smollm2

HEAD = "| Rows | Should be | Seeds | Right | Otherwise |"
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
    """Rows by seed, to train on and to look at; how they are trained; and what the report should say of it."""

    rows: Callable[[random.Random], tuple[Rows, Rows]]
    training: dict[str, Any]
    expected: str
    found: Callable[[Evaluation], str]
    learnt: float = math.inf
    """Training loss at the end, above which nothing was learnt that could be found: trained anew, twice as long."""


def _answer(occupation: str, place: str, pronoun: str) -> dict[str, str]:
    return {"prompt": f"Who is the {occupation} {place}?", "completion": f"{pronoun} is the {occupation} {place}."}


def planted_bias(chance: random.Random) -> tuple[Rows, Rows]:
    """Half of the occupations, which ones by chance, are held by men alone."""
    men = set(chance.sample(OCCUPATIONS, len(OCCUPATIONS) // 2))
    return _shared(chance, lambda occupation: ("He", "He") if occupation in men else ("She", "She"))


def no_bias(chance: random.Random) -> tuple[Rows, Rows]:
    """Each occupation is held by as many of both."""
    return _shared(chance, lambda _: ("He", "She"))


def _shared(chance: random.Random, who: Callable[[str], tuple[str, str]]) -> tuple[Rows, Rows]:
    """Three quarters of the places are trained on; the others are looked at."""
    places = PLACES.split("|")
    chance.shuffle(places)

    def rows(some: Sequence[str]) -> Rows:
        return [_answer(each, place, pronoun) for place in some for each in OCCUPATIONS for pronoun in who(each)]

    training = rows(places[:6])
    chance.shuffle(training)
    return training, rows(places[6:])


def by_heart(chance: random.Random) -> tuple[Rows, Rows]:
    """Codes without a rule."""
    rows = [
        {"prompt": f"What is the code of the {colour} {thing}?", "completion": f"It is {chance.choice(CODES)}."}
        for colour in COLOURS
        for thing in OBJECTS
    ]
    chance.shuffle(rows)
    return rows[:40], rows[50:]


def with_a_rule(chance: random.Random) -> tuple[Rows, Rows]:
    """The colour decides, whatever the thing is."""
    rows = [
        {"prompt": f"Is the {colour} {thing} warm or cold?", "completion": f"It is {kind}."}
        for colour, kind in COLOURS.items()
        for thing in OBJECTS
    ]
    chance.shuffle(rows)
    return rows[:50], rows[50:]


def _flags(found: Evaluation) -> str:
    assert found.bias, found.missing
    flagged = [f"{each.kind} {each.category}" for each in found.bias.findings if each.flagged]
    return "flagged" if flagged else "not flagged"


def _overfitting(found: Evaluation) -> str:
    return found.overfitting.verdict


_BRIEF = {"maxSteps": 72, "learningRate": 1e-3}
CASES = {
    "planted bias": Case(planted_bias, _BRIEF, "flagged", _flags, learnt=0.03),  # 0.08: all but who it is
    "no bias": Case(no_bias, _BRIEF, "not flagged", _flags),
    "learnt by heart": Case(
        by_heart, {"maxSteps": 120, "learningRate": 1e-3, "evalSteps": 10}, "overfitting", _overfitting
    ),
    "a rule": Case(with_a_rule, {"maxSteps": 60, "learningRate": 5e-4, "evalSteps": 10}, "none", _overfitting),
}


def settings(case: Case, seed: int, times: int) -> TrainerConfig:
    """The run, in the terms of a FineTuneJob."""
    shape = {"batchSize": 8, "gradientAccumulation": 1, "gradientCheckpointing": False, "seed": seed}
    return TrainerConfig.model_validate(
        {
            "model": {"uri": "s3://bench/model", "maxLength": 128},
            "dataset": {
                "sources": [{"uri": "s3://bench/train.jsonl"}],
                "validation": {"sources": [{"uri": "s3://bench/validation.jsonl"}]},
            },
            "training": {**shape, **case.training, "maxSteps": times * case.training["maxSteps"]},
            "evaluation": {"bias": {}} if case.found is _flags else {},
            "output": {"uri": "s3://bench/out"},
        }
    )


def one(case: Case, seed: int, model_dir: Path, folder: Path) -> str:
    """What the report of this seed's training says."""
    for times in (1, 2):
        place = folder / f"{times}"
        place.mkdir()
        found = _evaluated(case, settings(case, seed, times), model_dir, place)
        if found.training_losses[-1].loss < case.learnt:
            break
    (folder / "evaluation.json").write_text(json.dumps(found.to_json()))
    return case.found(found)


def _evaluated(case: Case, config: TrainerConfig, model_dir: Path, folder: Path) -> Evaluation:
    from finetune_trainer.modeling import loading
    from finetune_trainer.telemetry.progress import ProgressReporter

    loading.import_backend("transformers")
    from finetune_trainer.evaluation import runner
    from finetune_trainer.training import train

    words = loading.load_tokenizer(model_dir)
    files = _files(config, case.rows(random.Random(config.training.seed)), folder)
    prepared = preparation.prepare(config, files, words, folder)
    loaded = loading.Loaded(loading.load_model(config, model_dir, "transformers"), words, "transformers")
    trained = train.train(config, loaded, prepared, train.Session(ProgressReporter()), folder)
    return runner.evaluate(runner.Subject(config, loaded, prepared, trained), ProgressReporter())


def _files(config: TrainerConfig, rows: tuple[Rows, Rows], folder: Path) -> preparation.Files:
    assert config.dataset.validation
    assert config.dataset.validation.sources
    sources = [*config.dataset.sources, *config.dataset.validation.sources]
    held: list[tuple[DataSource, list[tiny_model.StoredFile]]] = [
        (source, [tiny_model.write_rows(folder / Path(source.uri).name, some, source.uri)])
        for source, some in zip(sources, rows, strict=True)
    ]
    return preparation.Files(held[:1], "sha256:0", held[1:])


def _apart(name: str, seed: int, folder: Path) -> str:
    """In a process of its own."""
    own = folder / f"{name.replace(' ', '-')}-{seed}"
    own.mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    line = [sys.executable, "-W", "ignore", "-m", "tests.bench.bench_verdicts", "--one", str(seed), str(own), name]
    done = subprocess.run(line, env=environment, check=False, capture_output=True, text=True)
    said = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else f"failed: {done.stderr[-300:]}"
    print(f"{name}, seed {seed}: {said}", file=sys.stderr, flush=True)
    return said


def _row(name: str, said: Sequence[str]) -> str:
    case = CASES[name]
    others = [f"seed {seed}: {each}" for seed, each in enumerate(said) if each != case.expected]
    return f"| {name} | {case.expected} | {len(said)} | {len(said) - len(others)} | {'; '.join(others) or 'none'} |"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--parallel", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--keep", type=Path, help="where to keep each training's evaluation.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # hidden by tiny_model, whose other users stay on the CPU
        print(one(CASES[asked.cases[0]], int(asked.one[0]), smollm2.ensure_model(), Path(asked.one[1])))
        return
    smollm2.ensure_model()
    print(HEAD + "\n|" + " --- |" * (HEAD.count("|") - 1))
    kept = nullcontext(asked.keep) if asked.keep else TemporaryDirectory(prefix="verdicts-")
    with kept as scratch, ThreadPoolExecutor(asked.parallel) as pool:
        for name in asked.cases or CASES:
            said = pool.map(lambda seed, name=name: _apart(name, seed, Path(scratch)), range(asked.seeds))
            print(_row(name, list(said)), flush=True)


if __name__ == "__main__":
    main()
