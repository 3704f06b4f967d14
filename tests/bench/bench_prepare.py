"""Rows per second and memory of data preparation, on rows made here: `make bench-prepare [ROWS="10000 100000"]`.

Each size runs in a process of its own, since a process' peak memory never goes down.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.trainer.tiny_model import StoredFile, config, tokenizer

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data import preparing

_SIZES = ("10000", "100000", "1000000")
_WORDS = [f"word{number}" for number in range(5000)]
_CASES = {
    "exact": {},
    "near": {"preparation": {"deduplicate": "near"}},
    "exact, fraction 0.1": {"validation": {"fraction": 0.1}},
}
_NEAR_ROWS = 200_000


def main() -> None:
    """Print a line of a table for each size and case."""
    if sys.argv[1:2] == ["one"]:
        _one(int(sys.argv[2]), sys.argv[3])
        return
    _say("| rows | duplicates | rows/s | seconds | peak memory | before the rows |")
    for size in sys.argv[1:] or _SIZES:
        for case in _CASES:
            if case == "exact" or int(size) <= _NEAR_ROWS:
                subprocess.run([sys.executable, "-m", "tests.bench.bench_prepare", "one", size, case], check=True)


def _one(size: int, case: str) -> None:
    words = tokenizer()
    with TemporaryDirectory() as folder:
        file = _write(Path(folder) / "rows.jsonl", size)
        before, begun = _peak(), time.monotonic()
        settings = _settings(case)
        report = preparing.prepare(
            settings, preparing.Files([(settings.dataset.sources[0], [file])], ""), words, Path(folder)
        ).report
        seconds = time.monotonic() - begun
    assert report.rows == size
    _say(f"| {size} | {case} | {size / seconds:.0f} | {seconds:.1f} | {_peak()} MiB | {before} MiB |")


def _settings(case: str) -> TrainerConfig:
    made = config(max_length=512).to_json()
    made["dataset"].update(_CASES[case])
    return TrainerConfig.model_validate(made)


def _write(path: Path, size: int) -> StoredFile:
    """Questions and answers of 10 to 60 words; every twentieth was there before."""
    chance = random.Random(0)
    with path.open("w") as file:
        for number in range(size):
            if number % 20 != 19:
                texts = [" ".join(chance.choices(_WORDS, k=chance.randint(5, 30))) for _ in range(2)]
            file.write(json.dumps({"prompt": texts[0], "completion": texts[1]}) + "\n")
    return StoredFile("s3://data/rows.jsonl", path)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _peak() -> int:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
