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
from finetune_trainer.data.deduplication import MAX_NEAR_DUPLICATE_ROWS, HashSet, MinHashIndex, RowGroups
from finetune_trainer.data.folds import Folds
from finetune_trainer.data.loss_masking import LossMasker
from finetune_trainer.data.preparation_report import RowLedger
from finetune_trainer.data.row_schema import RowEncoding, RowSchema
from finetune_trainer.data.rows import RowReader, SourceFile
from finetune_trainer.data.shingles import BoilerplateFinder
from finetune_trainer.data.split_writer import DuplicateIndex, PreparationContext, SplitWriter
from finetune_trainer.data.tokenized_rows import LengthLimits
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.evaluation import LengthBin, RejectedRow

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

SourceFiles = Sequence[tuple[DataSource, Sequence[SourceFile]]]


@dataclass(frozen=True)
class DataFiles:
    """What rows are read from; `digest` is that of all files."""

    sources: SourceFiles
    digest: str
    validation_sources: SourceFiles = ()


@dataclass(frozen=True)
class PreparedData:
    """Rows ready to train on, memory-mapped from disk; in the columns of the training method."""

    dataset: datasets.Dataset
    report: DatasetReport
    validation: datasets.Dataset | None = None
    rejected_examples: Sequence[RejectedRow] = ()
    """A few rows that were left out, for each reason."""
    length_histogram: Sequence[LengthBin] = ()
    """How many rows have so many tokens, those set aside for validation too."""
    folds: Folds | None = None
    """Parts of `dataset` for cross-validation, if there is any."""
    held_out_fold: datasets.Dataset | None = None
    """Rows that the loss is measured on once the training has ended."""

    @property
    def digest(self) -> str:
        """Of all files, and of how the rows were divided, if they were."""
        return f"{self.report.digest} {self.folds.digest}" if self.folds else self.report.digest

    def exclude_fold(self, fold: int) -> PreparedData:
        """What a fold trains on: all but this part, from 0, which is left out."""
        if self.folds is None:
            raise ValueError("the rows were not divided")
        training_rows, held_out_rows = (
            self.dataset.select(rows)
            for rows in (self.folds.select_training_rows(fold), self.folds.select_held_out_rows(fold))
        )
        return replace(self, dataset=training_rows, folds=None, held_out_fold=held_out_rows)


def prepare_dataset(
    config: TrainerConfig,
    files: DataFiles,
    encoding: RowEncoding,
    work_dir: Path,
) -> PreparedData:
    """Read, clean, check, tokenise and label every row of `files`; the tokens go to files in `work_dir`. No row is
    longer than `model.maxLength` and the positions of the model, if they are limited.

    The report accounts for every row: rows = kept + validation + the sum of rejected.
    Raises `DATA_INVALID` naming the first wrong rows and how many there are, and for rows that cannot be divided as
    asked, `DATASET_EMPTY` if none is left, `CONFIG_INVALID` if there are too many rows to look for near-duplicates,
    `MODEL_INVALID` if the tokenizer cannot do it.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    boilerplate = _find_boilerplate(config, files, encoding.schema)
    context = _build_context(config, files, encoding)
    validation_index = _build_duplicate_index(
        config, work_dir, boilerplate, always_track=bool(files.validation_sources)
    )
    validation_writer = SplitWriter(context, work_dir / "validation.arrow", validation_index)
    validation_writer.write(context.reader.read(files.validation_sources))
    training_writer = SplitWriter(
        context,
        work_dir / "dataset.arrow",
        _build_duplicate_index(config, work_dir, boilerplate),
        validation_writer.duplicate_index,
    )
    training_writer.row_groups = _build_row_groups(config, boilerplate)
    training_writer.write(context.reader.read(files.sources))
    context.ledger.check_invalid_rows(context.reader)

    selected_rows = _select_rows_to_hold_out(config, training_writer)
    validation_rows = selected_rows[~training_writer.stats.is_augmented(selected_rows)]
    validation_count = len(validation_rows) + validation_writer.stats.row_count
    report = context.ledger.build_report(
        context.reader.row_count, validation_count, training_writer.stats.compute_totals(selected_rows), files.digest
    )
    dataset, validation = _split_dataset(training_writer, selected_rows, validation_rows)
    rejected_examples = context.ledger.collect_rejected_examples(context.reader)
    validation, cv_folds = (
        _load_validation_dataset(files, validation_writer) or validation,
        _build_folds(config, training_writer, selected_rows),
    )
    return PreparedData(
        dataset, report, validation, rejected_examples, training_writer.stats.compute_length_histogram(), cv_folds
    )


def _build_context(config: TrainerConfig, files: DataFiles, encoding: RowEncoding) -> PreparationContext:
    limits = LengthLimits.from_config(config, encoding.max_positions)
    if limits.is_set_by_model:
        log.info(
            "model.maxLength is lowered from %d to %d: %s",
            config.model.max_length,
            limits.max_tokens,
            limits.explanation,
        )
    return PreparationContext(
        preparation=config.dataset.preparation,
        schema=encoding.schema,
        limits=limits,
        loss_masker=LossMasker(encoding.tokenizer, config.training.loss),
        ledger=RowLedger(config, [file.uri for _, source_files in files.sources for file in source_files], limits),
        reader=RowReader(encoding.schema),
    )


def _find_boilerplate(config: TrainerConfig, files: DataFiles, schema: RowSchema) -> frozenset[int] | None:
    """What does not count when rows are compared; `None` if they are not compared, or too many for it.

    Raises `CONFIG_INVALID` if they are too many and have to be compared.
    """
    needs_near_duplicates = config.dataset.preparation.deduplicate == "near"
    if not needs_near_duplicates and not _needs_row_groups(config):
        return None
    finder = BoilerplateFinder()
    rows = RowReader(schema).read([*files.validation_sources, *files.sources])
    for number, (_, row) in enumerate(rows):
        if number == MAX_NEAR_DUPLICATE_ROWS and needs_near_duplicates:
            raise TrainerError(
                Reason.CONFIG_INVALID,
                f"dataset.preparation.deduplicate: near works up to {MAX_NEAR_DUPLICATE_ROWS} rows, the sources "
                "hold more; "
                "use exact, or give the sources a limit",
            )
        if number == MAX_NEAR_DUPLICATE_ROWS:
            return None
        finder.add(row)
    return finder.find_boilerplate()


def _get_validation_fraction(config: TrainerConfig) -> float | None:
    return config.dataset.validation.fraction if config.dataset.validation else None


def _needs_row_groups(config: TrainerConfig) -> bool:
    """Whether the rows are divided."""
    return _get_validation_fraction(config) is not None or config.training.cross_validation is not None


def _build_duplicate_index(
    config: TrainerConfig, work_dir: Path, boilerplate: frozenset[int] | None, *, always_track: bool = False
) -> DuplicateIndex:
    preparation = config.dataset.preparation
    near_index = (
        MinHashIndex(preparation.near_threshold, boilerplate or frozenset())
        if preparation.deduplicate == "near"
        else None
    )
    return DuplicateIndex(HashSet(work_dir), near_index, always_track or preparation.deduplicate != "none")


def _build_row_groups(config: TrainerConfig, boilerplate: frozenset[int] | None) -> RowGroups | None:
    if not _needs_row_groups(config):
        return None
    threshold = config.dataset.preparation.near_threshold
    return RowGroups(None if boilerplate is None else MinHashIndex(threshold, boilerplate))


def _select_rows_to_hold_out(config: TrainerConfig, training_writer: SplitWriter) -> NDArray[np.int64]:
    """Training rows to set aside."""
    import numpy as np

    fraction = _get_validation_fraction(config)
    if not fraction or not training_writer.row_groups or not training_writer.stats.row_count:
        return np.empty(0, dtype=np.int64)
    seed = config.dataset.validation.seed if config.dataset.validation else 0
    return splits.choose_validation_rows(training_writer.row_groups.compute_keys(), fraction, seed)


def _build_folds(config: TrainerConfig, training_writer: SplitWriter, selected_rows: NDArray[np.int64]) -> Folds | None:
    """Of the rows to train on, all but the chosen ones."""
    import numpy as np

    cross_validation = config.training.cross_validation
    if not cross_validation or not training_writer.row_groups:
        return None
    rows = np.setdiff1d(np.arange(training_writer.stats.row_count), selected_rows, assume_unique=True)
    group_keys = np.frombuffer(training_writer.row_groups.compute_keys(), dtype=np.uint64)[rows]
    return folds.assign_folds(
        group_keys, training_writer.stats.is_augmented(rows), cross_validation.folds, config.training.seed
    )


def _split_dataset(
    training_writer: SplitWriter, selected_rows: NDArray[np.int64], validation_rows: NDArray[np.int64]
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Rows to train on, all but the chosen ones, and rows set aside: those chosen that stand in the data."""
    import numpy as np

    dataset = training_writer.load_dataset()
    if not len(selected_rows):
        return dataset, None
    return dataset.select(np.setdiff1d(np.arange(len(dataset)), selected_rows, assume_unique=True)), dataset.select(
        validation_rows
    )


def _load_validation_dataset(files: DataFiles, validation_writer: SplitWriter) -> datasets.Dataset | None:
    if not files.validation_sources:
        return None
    if not validation_writer.stats.row_count:
        raise TrainerError(
            Reason.DATASET_EMPTY, "dataset.validation.sources: none of their rows can be used; see what was left out"
        )
    return validation_writer.load_dataset()
