"""From JSONL objects to tokens and labels on disk, with an account of every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import DatasetReport, DataSource, Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.labels import Example, Labeller, Rendered
from finetune_trainer.rows import Place, Reader, Row, RowError, SourceFile

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

OVERLENGTH = "overlength"
"""Rejected: more tokens than `model.maxLength`."""
NO_SUPERVISED_TOKENS = "noSupervisedTokens"
"""Rejected: nothing in it is learnt."""
_BATCH = 256


@dataclass(frozen=True)
class PreparedData:
    """Rows ready to train on: `input_ids` and `labels`, one list of numbers each per row, memory-mapped from disk."""

    dataset: datasets.Dataset
    report: DatasetReport


@dataclass
class _Account:
    """Decides on each row and counts it; `longest` is the longest row's tokens, kept or not."""

    max_length: int
    counts: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    longest: int = 0

    def keeps(self, example: Example) -> bool:
        self.longest = max(self.longest, len(example.input_ids))
        reason = self._why_not(example)
        if reason:
            self.rejected[reason] += 1
            return False
        self.counts.update(kept=1, tokens=len(example.input_ids), supervised=example.supervised)
        return True

    def _why_not(self, example: Example) -> str | None:
        if len(example.input_ids) > self.max_length:
            return OVERLENGTH
        return None if example.supervised else NO_SUPERVISED_TOKENS

    def report(self, rows: int, digest: str) -> DatasetReport:
        """The account, which must balance. Raises `DATASET_EMPTY` if nothing is left."""
        if not self.counts["kept"]:
            raise TrainerError(Reason.DATASET_EMPTY, self._empty_message(rows))
        return DatasetReport(
            rows=rows,
            kept=self.counts["kept"],
            rejected=dict(sorted(self.rejected.items())),
            tokens=self.counts["tokens"],
            supervised_tokens=self.counts["supervised"],
            digest=digest,
        )

    def _empty_message(self, rows: int) -> str:
        if not rows:
            return "the data's objects hold no row"
        found = ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejected.items()))
        return (
            f"none of {rows} rows can be trained on: {found}; the longest has {self.longest} tokens, "
            f"model.maxLength is {self.max_length}"
        )


def prepare(
    config: TrainerConfig,
    sources: Sequence[tuple[DataSource, Sequence[SourceFile]]],
    tokenizer: PreTrainedTokenizerBase,
    digest: str,
    work_dir: Path,
) -> PreparedData:
    """Read, check, tokenise and label every row of `sources`; the tokens go to a file in `work_dir`.

    The report accounts for every row: rows = kept + the sum of rejected. Memory does not grow with the data.
    Raises `DATA_INVALID` naming the first wrong rows and how many there are, `DATASET_EMPTY` if none is left,
    `MODEL_INVALID` if the tokenizer cannot do it.
    """
    import datasets

    reader, account = Reader(config.training.method), _Account(config.model.max_length)
    labeller = Labeller(tokenizer, config.training.loss)
    path = work_dir / "dataset.arrow"
    examples = _examples(reader, reader.read(sources), labeller)
    _write(path, (example for example in examples if account.keeps(example)))
    reader.offenders.raise_if_any(reader.rows)
    report = account.report(reader.rows, digest)
    # Straight from our own file: from_generator would look for an earlier run's in a cache, keyed by a pickle of
    # its arguments.
    return PreparedData(datasets.Dataset.from_file(str(path)), report)


def _examples(reader: Reader, rows: Iterator[tuple[Place, Row]], labeller: Labeller) -> Iterator[Example]:
    while batch := list(islice(rows, _BATCH)):
        yield from labeller.encode(list(_rendered(reader, batch, labeller)))


def _rendered(reader: Reader, rows: Iterable[tuple[Place, Row]], labeller: Labeller) -> Iterator[Rendered]:
    for place, row in rows:
        try:
            yield labeller.render(row)
        except RowError as why:
            reader.offenders.add(place, why)


def _write(path: Path, examples: Iterator[Example]) -> None:
    """All examples to an Arrow stream, which `datasets` maps into memory."""
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    with ArrowWriter(features=features, path=str(path), writer_batch_size=_BATCH) as writer:
        for example in examples:
            writer.write({"input_ids": example.input_ids, "labels": example.labels})
        writer.finalize()
