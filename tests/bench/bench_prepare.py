"""Rows per second and memory of data preparation on synthetic rows: `make bench-prepare [ROWS="10000 100000"]`.

Each line is measured in a separate process, because the peak memory of a process never decreases. To measure one case:
`python -m tests.bench.bench_prepare 1000000 exact`.
"""

from __future__ import annotations

import gc
import gzip
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.bench.private_memory import PrivateMemory
from tests.support.trainer.tiny_model import CHATML, StoredFile, config, tokenizer

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data import preparation
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.training.methods import METHODS, get_method

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
    """Print one line of the table for each size and case. The arguments are `[ROWS …] [CASE …]`."""
    if sys.argv[1:2] == ["one"]:
        _measure_case(int(sys.argv[2]), sys.argv[3])
        return
    sizes = [argument for argument in sys.argv[1:] if argument.isdigit()] or _SIZES
    cases = [argument for argument in sys.argv[1:] if not argument.isdigit()] or [*_CASES, *_READ_CASES]
    _print_line(
        "| Rows | Case | Rows/s | Rows per CPU second | Peak memory | Private memory | Before the rows | Disk |"
    )
    for size in sizes:
        for case in cases:
            if case in ("exact", *_READ_CASES) or int(size) <= _NEAR_ROWS:
                subprocess.run([sys.executable, "-m", "tests.bench.bench_prepare", "one", size, case], check=True)


def _measure_case(size: int, case: str) -> None:
    work = _read_rows if case in _READ_CASES else _prepare
    bench_tokenizer = _build_tokenizer() if work is _prepare else None
    with TemporaryDirectory() as folder, PrivateMemory() as memory:
        file = _READ_CASES.get(case, _write_jsonl)(Path(folder), size)
        gc.collect()  # frees what writing the file left in memory
        before, wall_start, cpu_start = memory.reset(), time.monotonic(), time.process_time()
        rows = work(case, file, bench_tokenizer)
        rate, per_cpu = size / (time.monotonic() - wall_start), size / (time.process_time() - cpu_start)
        disk = sum(path.stat().st_size for path in Path(folder).iterdir()) >> 20
    assert rows == size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    memories = f"{peak} MiB | {memory.peak} MiB | {before} MiB | {disk} MiB"
    _print_line(f"| {size} | {case} | {rate:.0f} | {per_cpu:.0f} | {memories} |")


def _prepare(case: str, file: StoredFile, bench_tokenizer: PreTrainedTokenizerBase | None) -> int:
    assert bench_tokenizer is not None
    settings = _build_config(case)
    files = preparation.DataFiles([(settings.dataset.sources[0], [file])], "")
    return preparation.prepare_dataset(
        settings, files, RowEncoding(bench_tokenizer, get_method(settings)), file.path.parent
    ).report.rows


def _read_rows(case: str, file: StoredFile, bench_tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Count the rows of a file. File types differ only in reading, so nothing else is measured."""
    return sum(1 for _ in RowReader(METHODS["sft"]).read([(_build_config(case).dataset.sources[0], [file])]))


def _build_config(case: str) -> TrainerConfig:
    content = config(max_length=512).to_json()
    content["dataset"].update(_CASES.get(case, {}))
    return TrainerConfig.model_validate(content)


def _build_tokenizer() -> PreTrainedTokenizerBase:
    """Train a tokenizer on the words, so that a row has about as many tokens as with a real tokenizer."""
    corpus = ["".join(f" {word}" for word in _WORDS), "user\nassistant\nto user@example.com"]
    trained = tokenizer().train_new_from_iterator(corpus * 20, vocab_size=8192)
    trained.chat_template = CHATML
    return trained


def _generate_rows(size: int) -> Iterator[tuple[str, str]]:
    """Yield questions and answers of 5 to 30 words together: 5 % are duplicates, 1 % contain an email address."""
    rng = random.Random(0)
    row = ("", "")
    for number in range(size):
        if number % 20 != 19:
            # One call for all words, because generating rows must not take longer than preparing them.
            words = rng.choices(_WORDS, k=rng.randint(5, 30))
            half = len(words) // 2
            row = (" ".join(words[:half]), " ".join(words[half:]))
        yield row if number % 100 else (f"{row[0]} to user{number}@example.com", row[1])


def _write_jsonl(folder: Path, size: int) -> StoredFile:
    return _write_text(
        folder / "rows.jsonl", "", (f'{{"prompt": "{a}", "completion": "{b}"}}\n' for a, b in _generate_rows(size))
    )


def _write_text(path: Path, start: str, lines: Iterator[str], end: str = "") -> StoredFile:
    with path.open("w") as file:
        file.write(start)
        file.writelines(lines)
        file.write(end)
    return StoredFile(f"s3://data/{path.name}", path)


def _write_csv(folder: Path, size: int) -> StoredFile:
    return _write_text(folder / "rows.csv", "prompt,completion\n", (f"{a},{b}\n" for a, b in _generate_rows(size)))


def _write_json_array(folder: Path, size: int) -> StoredFile:
    first = {"prompt": "a", "completion": "b"}
    rows = (f',\n{{"prompt": "{a}", "completion": "{b}"}}' for a, b in _generate_rows(size - 1))
    return _write_text(folder / "rows.json", f"[{json.dumps(first)}", rows, "]")


def _write_gzip(folder: Path, size: int) -> StoredFile:
    plain = _write_jsonl(folder, size).path
    packed = plain.with_suffix(".jsonl.gz")
    with plain.open("rb") as read, gzip.open(packed, "wb", compresslevel=6) as written:
        shutil.copyfileobj(read, written, 1 << 20)
    return StoredFile(f"s3://data/{packed.name}", packed)


def _write_zstd(folder: Path, size: int) -> StoredFile:
    import pyarrow as pa

    plain = _write_jsonl(folder, size).path
    packed = plain.with_suffix(".jsonl.zst")
    with plain.open("rb") as read, pa.CompressedOutputStream(str(packed), "zstd") as written:
        shutil.copyfileobj(read, written, 1 << 20)
    return StoredFile(f"s3://data/{packed.name}", packed)


def _write_parquet(folder: Path, size: int) -> StoredFile:
    """Write row groups of pyarrow's default size."""
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / "rows.parquet"
    schema = pa.schema({"prompt": pa.string(), "completion": pa.string()})
    with parquet.ParquetWriter(path, schema) as writer:
        rows = _generate_rows(size)
        while chunk := list(islice(rows, 1 << 20)):
            writer.write_table(pa.table(list(map(pa.array, zip(*chunk, strict=True))), schema=schema))
    return StoredFile(f"s3://data/{path.name}", path)


_READ_CASES: Mapping[str, Callable[[Path, int], StoredFile]] = {
    "only read, .jsonl.gz": _write_gzip,
    "only read, .jsonl.zst": _write_zstd,
    "only read, .json": _write_json_array,
    "only read, .csv": _write_csv,
    "only read, .parquet": _write_parquet,
}


def _print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
