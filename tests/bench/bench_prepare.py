"""Rows per second and memory of data preparation, on rows made here: `make bench-prepare [ROWS="10000 100000"]`.

Each line is a process of its own, since a process' peak memory never goes down. One case only:
`python -m tests.bench.bench_prepare 1000000 exact`.
"""

from __future__ import annotations

import gc
import gzip
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.trainer.tiny_model import CHATML, StoredFile, config, tokenizer

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data import preparation
from finetune_trainer.data.rows import RowReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SIZES = ("10000", "100000", "1000000")
_SYLLABLES = ("ka", "lo", "mi", "ren", "sta", "tu", "vel", "zor", "an", "beth", "ci", "dra")
_WORDS = ["".join(word) for size in (1, 2, 3) for word in product(_SYLLABLES, repeat=size)] + list(map(str, range(50)))
_CASES = {
    "exact": {},
    "near": {"preparation": {"deduplicate": "near"}},
    "exact, fraction 0.1": {"validation": {"fraction": 0.1}},
}
_NEAR_ROWS = 200_000


def main() -> None:
    """Print a line of a table for each size and case: `[ROWS …] [CASE or type of file …]`."""
    if sys.argv[1:2] == ["one"]:
        _one(int(sys.argv[2]), sys.argv[3])
        return
    sizes = [each for each in sys.argv[1:] if each.isdigit()] or _SIZES
    cases = [each for each in sys.argv[1:] if not each.isdigit()] or [*_CASES, *_TYPES]
    _say("| Rows | Case | Rows/s | Rows per CPU second | Peak memory | Of it not of files | Before the rows | Disk |")
    for size in sizes:
        for case in cases:
            if case in ("exact", *_TYPES) or int(size) <= _NEAR_ROWS:
                subprocess.run([sys.executable, "-m", "tests.bench.bench_prepare", "one", size, case], check=True)


def _one(size: int, case: str) -> None:
    work = _read if case in _TYPES else _prepare
    words = _tokenizer() if work is _prepare else None
    with TemporaryDirectory() as folder, _Memory() as memory:
        file = _TYPES.get(case, _write)(Path(folder), size)
        gc.collect()  # what making the file has left
        before, begun, used = memory.start(), time.monotonic(), time.process_time()
        rows = work(case, file, words)
        rate, per_cpu = size / (time.monotonic() - begun), size / (time.process_time() - used)
        disk = sum(each.stat().st_size for each in Path(folder).iterdir()) >> 20
    assert rows == size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    memories = f"{peak} MiB | {memory.most} MiB | {before} MiB | {disk} MiB"
    _say(f"| {size} | {case} | {rate:.0f} | {per_cpu:.0f} | {memories} |")


def _prepare(case: str, file: StoredFile, words: PreTrainedTokenizerBase | None) -> int:
    assert words is not None
    settings = _settings(case)
    files = preparation.DataFiles([(settings.dataset.sources[0], [file])], "")
    return preparation.prepare_dataset(settings, files, words, file.path.parent).report.rows


def _read(case: str, file: StoredFile, words: PreTrainedTokenizerBase | None) -> int:
    """Reading is all that differs from one type of file to another."""
    return sum(1 for _ in RowReader().read([(_settings(case).dataset.sources[0], [file])]))


def _settings(case: str) -> TrainerConfig:
    made = config(max_length=512).to_json()
    made["dataset"].update(_CASES.get(case, {}))
    return TrainerConfig.model_validate(made)


def _tokenizer() -> PreTrainedTokenizerBase:
    """One that knows the words, so that a row has as many tokens as with a real model's."""
    known = ["".join(f" {word}" for word in _WORDS), "user\nassistant\nto user@example.com"]
    made = tokenizer().train_new_from_iterator(known * 20, vocab_size=8192)
    made.chat_template = CHATML
    return made


def _rows(size: int) -> Iterator[tuple[str, str]]:
    """Questions and answers, together 5 to 30 words; a twentieth was there before, a hundredth has an address."""
    chance = random.Random(0)
    row = ("", "")
    for number in range(size):
        if number % 20 != 19:
            # One call for all words: making the rows must not take longer than preparing them.
            words = chance.choices(_WORDS, k=chance.randint(5, 30))
            half = len(words) // 2
            row = (" ".join(words[:half]), " ".join(words[half:]))
        yield row if number % 100 else (f"{row[0]} to user{number}@example.com", row[1])


def _write(folder: Path, size: int) -> StoredFile:
    return _text(folder / "rows.jsonl", "", (f'{{"prompt": "{a}", "completion": "{b}"}}\n' for a, b in _rows(size)))


def _text(path: Path, start: str, lines: Iterator[str], end: str = "") -> StoredFile:
    with path.open("w") as file:
        file.write(start)
        file.writelines(lines)
        file.write(end)
    return StoredFile(f"s3://data/{path.name}", path)


def _csv(folder: Path, size: int) -> StoredFile:
    return _text(folder / "rows.csv", "prompt,completion\n", (f"{a},{b}\n" for a, b in _rows(size)))


def _array(folder: Path, size: int) -> StoredFile:
    first = {"prompt": "a", "completion": "b"}
    rows = (f',\n{{"prompt": "{a}", "completion": "{b}"}}' for a, b in _rows(size - 1))
    return _text(folder / "rows.json", f"[{json.dumps(first)}", rows, "]")


def _gzip(folder: Path, size: int) -> StoredFile:
    plain = _write(folder, size).path
    packed = plain.with_suffix(".jsonl.gz")
    with plain.open("rb") as read, gzip.open(packed, "wb", compresslevel=6) as written:
        shutil.copyfileobj(read, written, 1 << 20)
    return StoredFile(f"s3://data/{packed.name}", packed)


def _zstd(folder: Path, size: int) -> StoredFile:
    import pyarrow as pa

    plain = _write(folder, size).path
    packed = plain.with_suffix(".jsonl.zst")
    with plain.open("rb") as read, pa.CompressedOutputStream(str(packed), "zstd") as written:
        shutil.copyfileobj(read, written, 1 << 20)
    return StoredFile(f"s3://data/{packed.name}", packed)


def _parquet(folder: Path, size: int) -> StoredFile:
    """Row groups as large as pyarrow makes them."""
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / "rows.parquet"
    schema = pa.schema({"prompt": pa.string(), "completion": pa.string()})
    with parquet.ParquetWriter(path, schema) as writer:
        rows = _rows(size)
        while some := list(islice(rows, 1 << 20)):
            writer.write_table(pa.table(list(map(pa.array, zip(*some, strict=True))), schema=schema))
    return StoredFile(f"s3://data/{path.name}", path)


_TYPES: Mapping[str, Callable[[Path, int], StoredFile]] = {
    "only read, .jsonl.gz": _gzip,
    "only read, .jsonl.zst": _zstd,
    "only read, .json": _array,
    "only read, .csv": _csv,
    "only read, .parquet": _parquet,
}


class _Memory:
    """The most memory of its own that the process holds meanwhile, in MiB: without pages of mapped files, which the
    kernel takes back when it needs them."""

    def __enter__(self) -> _Memory:
        self.most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def start(self) -> int:
        """What it holds now; the most is counted from here on."""
        self.most = self._resident()
        return self.most

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.most = max(self.most, self._resident())

    @staticmethod
    def _resident() -> int:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) >> 10 if found else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
