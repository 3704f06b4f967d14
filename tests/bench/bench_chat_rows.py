"""Preparation of chat rows beside TRL and LLaMA-Factory: `make bench-prepare`.

Every case reads the same file of chat rows of about 250 tokens with SmolLM2's tokenizer, in a process of its own. The
time of imports and of loading the tokenizer is not counted. Rounds alternate between the cases. To measure some cases:
`python -m tests.bench.bench_chat_rows --rows 10000 "tokenizer alone" "ids and labels"`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.bench.chat_rows import write_chat_rows
from tests.support.trainer.tiny_model import MARKED_CHATML, StoredFile, config

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data import preparation
from finetune_trainer.data.chat_template import ChatTemplate
from finetune_trainer.data.cleaning import clean_text
from finetune_trainer.data.control_tokens import ControlTokenFinder
from finetune_trainer.data.deduplication import HashSet, MinHashIndex
from finetune_trainer.data.loss_masking import LossMasker
from finetune_trainer.data.pii import list_pii_kinds
from finetune_trainer.data.rewritten_text import find_removed_text
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.data.row_texts import list_texts
from finetune_trainer.data.row_types import Chat
from finetune_trainer.data.tokenized_rows import LengthLimits, TokenizedRowWriter, build_tokenized_row
from finetune_trainer.training.methods import METHODS
from local_cluster import cache, paths, shell, smollm2

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

_ROWS = 60_000
_ROUNDS = 3
_BASELINE = "tokenizer alone"
_PEER = "LLaMA-Factory"
_PEER_VERSION = "0.9.5"
_BATCH_ROWS = 256
_MAX_LENGTH = 2048
Work = Callable[[], int]
"""The measured part of a case. Returns the number of rows."""


@dataclass(frozen=True)
class _Input:
    """What a case works on."""

    folder: Path
    """Folder for files, with the rows as `rows.jsonl`."""
    tokenizer: PreTrainedTokenizerBase

    @property
    def file(self) -> StoredFile:
        return StoredFile("s3://data/rows.jsonl", self.folder / "rows.jsonl")

    def read_turns(self) -> list[list[dict[str, str]]]:
        return [json.loads(line)["messages"] for line in self.file.path.read_text().splitlines()]

    def read_rows(self) -> Iterator[Chat]:
        """Yield the parsed rows."""
        rows = RowReader(METHODS["sft"]).read([(config().dataset.sources[0], [self.file])])
        return (each.row for each in rows if isinstance(each.row, Chat))

    def render_texts(self) -> list[str]:
        template = ChatTemplate(self.tokenizer)
        return [template.render(list(turns)) for turns in self.read_turns()]

    def load_dataset(self) -> datasets.Dataset:
        import datasets

        datasets.disable_progress_bars()
        return datasets.load_dataset("json", data_files=str(self.file.path), split="train", cache_dir=str(self.folder))


# --- The tokenizer and the preparation ---


def _tokenize_texts(given: _Input) -> Work:
    batches = list(_split_batches(given.render_texts()))
    encode = given.tokenizer.backend_tokenizer.encode_batch_fast
    return lambda: sum(len(encode(batch, add_special_tokens=False)) for batch in batches)


def _list_token_ids(given: _Input) -> Work:
    batches = list(_split_batches(given.render_texts()))
    encode = given.tokenizer.backend_tokenizer.encode_batch_fast
    return lambda: sum(len([each.ids for each in encode(batch, add_special_tokens=False)]) for batch in batches)


def _split_batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, _BATCH_ROWS)), [])


def _mask_rows(given: _Input) -> Work:
    """Read the rows, and write their IDs and labels, without any check."""
    schema, masker = METHODS["sft"], LossMasker(given.tokenizer)
    limits = LengthLimits.from_config(_build_config(), None)

    def work() -> int:
        count = 0
        with TokenizedRowWriter(given.folder / "masked.arrow", schema.token_columns) as writer:
            for batch in _split_batches(given.read_rows()):
                for row, tokens in zip(batch, masker.tokenize(list(map(masker.render, batch))), strict=True):
                    writer.add(build_tokenized_row(row, [tokens], limits, schema))
                count += len(batch)
        return count

    return work


def _mask_rows_of_marked_template(given: _Input) -> Work:
    given.tokenizer.chat_template = MARKED_CHATML
    return _mask_rows(given)


def _prepare_rows(given: _Input, **dataset: Any) -> Work:
    settings = _build_config(**dataset)
    files = preparation.DataFiles([(settings.dataset.sources[0], [given.file])], "")
    encoding = RowEncoding(given.tokenizer, METHODS["sft"])
    return lambda: preparation.prepare_dataset(settings, files, encoding, given.folder / "work").report.rows


def _prepare_rows_with_near_duplicates(given: _Input) -> Work:
    return _prepare_rows(given, preparation={"deduplicate": "near"})


def _build_config(**dataset: Any) -> TrainerConfig:
    content = config(max_length=_MAX_LENGTH).to_json()
    content["dataset"].update(dataset)
    return TrainerConfig.model_validate(content)


# --- The checks, each alone on parsed rows ---


def _check_texts(given: _Input, check: Callable[[str], object]) -> Work:
    rows = list(given.read_rows())
    return lambda: sum(len([check(text) for text in list_texts(row)]) > 0 for row in rows)


def _check_rows(given: _Input, check: Callable[[Chat], object]) -> Work:
    rows = list(given.read_rows())
    return lambda: len([check(row) for row in rows])


def _find_removed_words(given: _Input) -> Work:
    rows = list(given.read_rows())
    rendered = list(map(LossMasker(given.tokenizer).render, rows))
    return lambda: len(list(map(find_removed_text, rows, rendered)))


# --- The peers ---


def _map_masks(given: _Input) -> Work:
    """`datasets.map` with the masks of a template that marks the answers, as TRL's training templates do."""

    def tokenize(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        tokens = given.tokenizer.apply_chat_template(
            batch["messages"], chat_template=MARKED_CHATML, return_dict=True, return_assistant_tokens_mask=True
        )
        return {"input_ids": tokens["input_ids"], "assistant_masks": tokens["assistant_masks"]}

    return lambda: len(given.load_dataset().map(tokenize, batched=True, remove_columns=["messages"]))


def _run_trl(given: _Input) -> Work:
    """The preparation of TRL's SFTTrainer with `assistant_only_loss`, without the rest of the trainer."""
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(str(given.folder), max_length=_MAX_LENGTH, assistant_only_loss=True, use_cpu=True)
    trainer = SimpleNamespace(_tokenizer=given.tokenizer, chat_template=MARKED_CHATML, completion_only_loss=False)
    prepare: Callable[..., Any] = SFTTrainer._prepare_dataset
    return lambda: len(prepare(trainer, given.load_dataset(), given.tokenizer, arguments, False, None, "train"))


CASES: Mapping[str, Callable[[_Input], Work]] = {
    _BASELINE: _tokenize_texts,
    "tokenizer alone, lists of IDs": _list_token_ids,
    "ids and labels": _mask_rows,
    "ids and labels, marked template": _mask_rows_of_marked_template,
    "all default checks": _prepare_rows,
    "all checks, near duplicates": _prepare_rows_with_near_duplicates,
    "check: clean": lambda given: _check_texts(given, clean_text),
    "check: PII": lambda given: _check_rows(given, lambda row: list_pii_kinds(list_texts(row))),
    "check: exact duplicates": lambda given: _check_rows(given, HashSet(given.folder).add),
    "check: near duplicates": lambda given: _check_rows(given, MinHashIndex(0.8).compute_signature),
    "check: control tokens": lambda given: _check_rows(given, ControlTokenFinder(given.tokenizer).find),
    "check: rewritten words": _find_removed_words,
    "datasets.map, TRL's masks": _map_masks,
    "TRL's SFTTrainer, masks": _run_trl,
}
"""The cases that run with the Python of this environment."""


# --- Measurement ---


@dataclass(frozen=True)
class _Measurement:
    """Rows per second, and rows per second of CPU time."""

    rate: float
    rate_per_cpu: float


def _measure_case(case: str, folder: Path) -> None:
    """Print wall-clock and CPU seconds and the number of rows of one case as JSON."""
    from transformers import AutoTokenizer

    work = CASES[case](_Input(folder, AutoTokenizer.from_pretrained(smollm2.ensure_model())))
    wall, cpu = time.monotonic(), time.process_time()
    rows = work()
    print(json.dumps([time.monotonic() - wall, time.process_time() - cpu, rows]))


def _run_case(case: str, rows_file: Path, size: int) -> _Measurement:
    with TemporaryDirectory() as folder:
        os.link(rows_file, Path(folder) / "rows.jsonl")
        line = [sys.executable, "-m", "tests.bench.bench_chat_rows", "--one", case, folder]
        if case == _PEER:
            script = str(Path(__file__).with_name("llamafactory_rows.py"))
            line = [str(_ensure_peer() / "bin" / "python"), script, folder, str(smollm2.ensure_model())]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HOME": folder}
        process = subprocess.run(line, capture_output=True, env=environment, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{case} failed:\n{process.stderr}")
    wall, cpu, rows = json.loads(process.stdout.splitlines()[-1])
    if rows != size:
        raise SystemExit(f"{case}: {rows} rows instead of {size}")
    return _Measurement(size / wall, size / cpu)


def _ensure_peer() -> Path:
    """Return the virtual environment of LLaMA-Factory, which requires other versions of our libraries.

    It has our version of torch, whose files uv then shares between both environments.
    """
    target = paths.get_cache_folder() / f"llamafactory-{_PEER_VERSION}"
    with cache.lock("llamafactory"):
        if not target.exists():
            log = paths.get_logs_folder() / "llamafactory.log"
            with cache.replace_folder(target) as partial:
                shell.run(["uv", "venv", "--allow-existing", f"--python={sys.executable}", partial], log)
                packages = [f"llamafactory=={_PEER_VERSION}", f"torch=={importlib.metadata.version('torch')}"]
                shell.run(["uv", "pip", "install", f"--python={partial}/bin/python", *packages], log)
    return target


def _format_line(case: str, measurements: Sequence[_Measurement], baseline: Sequence[_Measurement]) -> str:
    rates = [each.rate_per_cpu for each in measurements]
    rate, median = statistics.median(each.rate for each in measurements), statistics.median(rates)
    # Each round has its own share, because the speed of a busy machine differs between rounds.
    shares = [own / other.rate_per_cpu for own, other in zip(rates, baseline, strict=False)]
    share = f"{100 * statistics.median(shares):.0f} %" if shares else ""
    return f"| {case} | {rate:.0f} | {median:.0f} | {min(rates):.0f}-{max(rates):.0f} | {share} |"


def _measure_cases(cases: Sequence[str], rows: int, rounds: int) -> Mapping[str, list[_Measurement]]:
    """Measure each case once per round."""
    measured: dict[str, list[_Measurement]] = {case: [] for case in cases}
    with TemporaryDirectory() as folder:
        rows_file = Path(folder) / "rows.jsonl"
        write_chat_rows(rows_file, smollm2.ensure_model() / "tokenizer.json", rows)
        for _ in range(rounds):
            for case in cases:
                measured[case].append(_run_case(case, rows_file, rows))
    return measured


def main() -> None:
    """Print one line of the table for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"cases to measure (default: all): {', '.join([*CASES, _PEER])}")
    parser.add_argument("--rows", type=int, default=_ROWS, help="number of rows")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="number of rounds")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        _measure_case(options.one[0], Path(options.one[1]))
        return
    measured = _measure_cases(options.cases or [*CASES, _PEER], options.rows, options.rounds)
    print("| Case | Rows/s | Rows per CPU second | Range | Share of the tokenizer |\n| --- | --- | --- | --- | --- |")
    for case, measurements in measured.items():
        print(_format_line(case, measurements, measured.get(_BASELINE, ())))


if __name__ == "__main__":
    main()
