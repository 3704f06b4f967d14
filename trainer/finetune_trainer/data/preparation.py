"""From the data's rows to tokens on disk, with an account of every row.

Rows of `validation.sources` go first, so that training rows that also stand there are known. Each row is read,
cleaned, redacted, compared with those before it, tokenised and written, one batch at a time. Memory does not grow with
the rows but for what groups them: 8 bytes per row for `validation.fraction` and `crossValidation`, and a few KB for
near-duplicates, up to `duplicates.NEAR_LIMIT` rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import DatasetReport, DataSource, Reason, TrainerConfig
from finetune_trainer.data import folds, splits
from finetune_trainer.data.deduplication import NEAR_LIMIT, Groups, Hashes, Near
from finetune_trainer.data.folds import Folds
from finetune_trainer.data.loss_masking import Labeller
from finetune_trainer.data.preparation_report import Account
from finetune_trainer.data.rows import Reader, SourceFile
from finetune_trainer.data.shingles import BoilerplateFinder
from finetune_trainer.data.split_writer import Context, Known, Side
from finetune_trainer.data.tokenized_rows import Limits
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.evaluation import Bar, Example

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Sources = Sequence[tuple[DataSource, Sequence[SourceFile]]]


@dataclass(frozen=True)
class Files:
    """What rows are read from; `digest` is that of all files."""

    sources: Sources
    digest: str
    validation: Sources = ()


@dataclass(frozen=True)
class PreparedData:
    """Rows ready to train on, memory-mapped from disk; `columns.COLUMNS` says what they hold."""

    dataset: datasets.Dataset
    report: DatasetReport
    validation: datasets.Dataset | None = None
    examples: Sequence[Example] = ()
    """A few rows that were left out, for each reason."""
    lengths: Sequence[Bar] = ()
    """How many rows have so many tokens, those set aside for validation too."""
    folds: Folds | None = None
    """Parts of `dataset` for cross-validation, if there is any."""
    left_out: datasets.Dataset | None = None
    """Rows that the loss is measured on once the training has ended."""

    @property
    def digest(self) -> str:
        """Of all files, and of how the rows were divided, if they were."""
        return f"{self.report.digest} {self.folds.digest}" if self.folds else self.report.digest

    def without(self, part: int) -> PreparedData:
        """What a fold trains on: all but this part, from 0, which is left out."""
        if self.folds is None:
            raise ValueError("the rows were not divided")
        rest, left_out = (self.dataset.select(rows) for rows in (self.folds.rest(part), self.folds.left_out(part)))
        return replace(self, dataset=rest, folds=None, left_out=left_out)


def prepare(
    config: TrainerConfig,
    files: Files,
    tokenizer: PreTrainedTokenizerBase,
    work_dir: Path,
    positions: int | None = None,
) -> PreparedData:
    """Read, clean, check, tokenise and label every row of `files`; the tokens go to files in `work_dir`. No row is
    longer than `model.maxLength` and the model's `positions`, if it has a limit.

    The report accounts for every row: rows = kept + validation + the sum of rejected.
    Raises `DATA_INVALID` naming the first wrong rows and how many there are, and for rows that cannot be divided as
    asked, `DATASET_EMPTY` if none is left, `CONFIG_INVALID` if there are too many rows to look for near-duplicates,
    `MODEL_INVALID` if the tokenizer cannot do it.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    boilerplate = _boilerplate(config, files)
    context = _context(config, files, tokenizer, Limits.of(config, positions))
    known = _known(config, work_dir, boilerplate, needed=bool(files.validation))
    held_out = Side(context, work_dir / "validation.arrow", known)
    held_out.write(context.reader.read(files.validation))
    training = Side(context, work_dir / "dataset.arrow", _known(config, work_dir, boilerplate), held_out.known)
    training.groups = _groups(config, boilerplate)
    training.write(context.reader.read(files.sources))
    context.account.check(context.reader)

    chosen = _chosen(config, training)
    set_aside = chosen[~training.facts.augmented(chosen)]
    validation_rows = len(set_aside) + held_out.facts.rows
    report = context.account.report(context.reader.rows, validation_rows, training.facts.totals(chosen), files.digest)
    dataset, validation = _divided(training, chosen, set_aside)
    examples = context.account.examples(context.reader)
    validation, parts = _held_out(files, held_out) or validation, _folds(config, training, chosen)
    return PreparedData(dataset, report, validation, examples, training.facts.lengths(), parts)


def _context(config: TrainerConfig, files: Files, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> Context:
    if limits.by_model:
        log.info("model.maxLength is lowered from %d to %d: %s", config.model.max_length, limits.most, limits.reason)
    return Context(
        preparation=config.dataset.preparation,
        method=config.training.method,
        limits=limits,
        labeller=Labeller(tokenizer, config.training.loss),
        account=Account(config, [file.uri for _, objects in files.sources for file in objects], limits),
        reader=Reader(config.training.method),
    )


def _boilerplate(config: TrainerConfig, files: Files) -> frozenset[int] | None:
    """What does not count when rows are compared; `None` if they are not compared, or too many for it.

    Raises `CONFIG_INVALID` if they are too many and have to be compared.
    """
    near = config.dataset.preparation.deduplicate == "near"
    if not near and not _grouped(config):
        return None
    finder = BoilerplateFinder()
    rows = Reader(config.training.method).read([*files.validation, *files.sources])
    for number, (_, row) in enumerate(rows):
        if number == NEAR_LIMIT and near:
            raise TrainerError(
                Reason.CONFIG_INVALID,
                f"dataset.preparation.deduplicate: near works up to {NEAR_LIMIT} rows, the sources hold more; "
                "use exact, or give the sources a limit",
            )
        if number == NEAR_LIMIT:
            return None
        finder.add(row)
    return finder.boilerplate()


def _fraction(config: TrainerConfig) -> float | None:
    return config.dataset.validation.fraction if config.dataset.validation else None


def _grouped(config: TrainerConfig) -> bool:
    """Whether the rows are divided."""
    return _fraction(config) is not None or config.training.cross_validation is not None


def _known(config: TrainerConfig, work_dir: Path, boilerplate: frozenset[int] | None, *, needed: bool = False) -> Known:
    preparation = config.dataset.preparation
    near = Near(preparation.near_threshold, boilerplate or frozenset()) if preparation.deduplicate == "near" else None
    return Known(Hashes(work_dir), near, needed or preparation.deduplicate != "none")


def _groups(config: TrainerConfig, boilerplate: frozenset[int] | None) -> Groups | None:
    if not _grouped(config):
        return None
    threshold = config.dataset.preparation.near_threshold
    return Groups(None if boilerplate is None else Near(threshold, boilerplate))


def _chosen(config: TrainerConfig, training: Side) -> NDArray[np.int64]:
    """Training rows to set aside."""
    import numpy as np

    fraction = _fraction(config)
    if not fraction or not training.groups or not training.facts.rows:
        return np.empty(0, dtype=np.int64)
    seed = config.dataset.validation.seed if config.dataset.validation else 0
    return splits.choose(training.groups.keys(), fraction, seed)


def _folds(config: TrainerConfig, training: Side, chosen: NDArray[np.int64]) -> Folds | None:
    """Of the rows to train on, all but the chosen ones."""
    import numpy as np

    asked = config.training.cross_validation
    if not asked or not training.groups:
        return None
    rows = np.setdiff1d(np.arange(training.facts.rows), chosen, assume_unique=True)
    keys = np.frombuffer(training.groups.keys(), dtype=np.uint64)[rows]
    return folds.divide(keys, training.facts.augmented(rows), asked.folds, config.training.seed)


def _divided(
    training: Side, chosen: NDArray[np.int64], set_aside: NDArray[np.int64]
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Rows to train on, all but the chosen ones, and rows set aside: those chosen that stand in the data."""
    import numpy as np

    rows = training.dataset()
    if not len(chosen):
        return rows, None
    return rows.select(np.setdiff1d(np.arange(len(rows)), chosen, assume_unique=True)), rows.select(set_aside)


def _held_out(files: Files, side: Side) -> datasets.Dataset | None:
    if not files.validation:
        return None
    if not side.facts.rows:
        raise TrainerError(
            Reason.DATASET_EMPTY, "dataset.validation.sources: none of their rows can be used; see what was left out"
        )
    return side.dataset()
