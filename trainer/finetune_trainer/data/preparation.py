"""Data preparation: from the rows of the sources to tokens on disk, with a report that accounts for every row.

The rows of `evaluation.test.sources` come first and those of `validation.sources` second, so that training rows that
are also held-out rows are found, and validation rows that are also test rows. Rows are read, cleaned, redacted,
compared with earlier rows, tokenized and written in batches. Memory grows with the number of rows only for groups of
rows: by 8 bytes per row for `validation.fraction` and `crossValidation`, and by a few KB per row for near-duplicates,
which are limited to `deduplication.MAX_NEAR_DUPLICATE_ROWS` rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import DatasetReport, DataSource, Reason, TrainerConfig, list_item_fields
from finetune_trainer.data import folds, splits
from finetune_trainer.data.deduplication import (
    MAX_NEAR_DUPLICATE_ROWS,
    MinHashIndex,
    RowGroups,
)
from finetune_trainer.data.folds import Folds
from finetune_trainer.data.held_out_splits import TEST, VALIDATION, DuplicateSearch, HeldOutSplits
from finetune_trainer.data.loss_masking import LossMasker
from finetune_trainer.data.preparation_report import HeldOutCounts, RowLedger
from finetune_trainer.data.rewritten_text import RewrittenRows
from finetune_trainer.data.row_counter import RowCounter
from finetune_trainer.data.row_digests import RowDigests
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_schema import RowEncoding, RowSchema
from finetune_trainer.data.row_types import SourceFile, SourceLocation
from finetune_trainer.data.shingles import BoilerplateFinder
from finetune_trainer.data.split_writer import PreparationContext, SplitWriter
from finetune_trainer.data.tokenized_rows import LengthLimits
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import pluralize
from finetune_trainer.records.evaluation import LengthBin, RejectedRow

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray

    from finetune_trainer.data.row_digests import DigestTable

log = logging.getLogger(__name__)

_MAX_LOCATIONS = 1000
"""Number of rows whose locations are kept in memory."""
SourceFiles = Sequence[tuple[DataSource, Sequence[SourceFile]]]


@dataclass(frozen=True)
class DataFiles:
    """Files to read rows from. `digest` is the digest of all files."""

    sources: SourceFiles
    digest: str
    validation_sources: SourceFiles = ()
    test_sources: SourceFiles = ()

    @property
    def all_sources(self) -> SourceFiles:
        """All sources in the order in which they are read."""
        return [*self.test_sources, *self.validation_sources, *self.sources]


@dataclass(frozen=True)
class PreparedData:
    """Rows that are ready for training, memory-mapped from disk, in the columns of the training method."""

    dataset: datasets.Dataset
    report: DatasetReport
    validation: datasets.Dataset | None = None
    rejected_examples: Sequence[RejectedRow] = ()
    """A few rejected rows for each reason."""
    length_histogram: Sequence[LengthBin] = ()
    """Number of rows by length in tokens, with the rows that are held out for validation."""
    folds: Folds | None = None
    """Folds of `dataset`, or None without cross-validation."""
    held_out_fold: datasets.Dataset | None = None
    """Rows to measure the loss on after training on the other folds."""
    rewritten: RewrittenRows = field(default_factory=RewrittenRows)
    """Rows with words that the chat template removes or rewrites."""
    control_tokens: RowCounter = field(default_factory=RowCounter)
    """Rows with the text of a control token, which is the `example`."""
    unused_columns: Mapping[str, int] = field(default_factory=dict)
    """Number of rows by the name of a filled column that their format does not use."""
    answer_ends: Mapping[int, int] = field(default_factory=dict)
    """Number of answers by the token that ends them, without answers of truncated rows."""
    template_date: date | None = None
    """Date that the chat template wrote as the current one. None: it writes today's date, or none."""
    locations: Sequence[SourceLocation] = ()
    """Locations of the first rows of `dataset`, in its order."""
    texts: datasets.Dataset | None = None
    """Texts of the rows of `dataset`, by the same numbers (`row_archive.ArchivedRow`), if answers are
    scored."""
    validation_texts: datasets.Dataset | None = None
    """Texts of the rows of `validation`, by the same numbers, if answers are scored."""
    validation_digests: DigestTable | None = None
    """Digests of the rows of `validation`, by the same numbers, or None without validation rows."""
    test: datasets.Dataset | None = None
    """Rows of `evaluation.test`, or None without it."""
    test_texts: datasets.Dataset | None = None
    """Texts of the rows of `test`, by the same numbers, if answers are scored."""

    @property
    def digest(self) -> str:
        """Digest of all files, and of the assignment to folds if there is one."""
        return f"{self.report.digest} {self.folds.digest}" if self.folds else self.report.digest

    def exclude_fold(self, fold: int) -> PreparedData:
        """Return the data to train on while this fold, counted from 0, is held out."""
        if self.folds is None:
            raise ValueError("the data has no folds")
        training_rows, held_out_rows = (
            self.dataset.select(rows)
            for rows in (self.folds.select_training_rows(fold), self.folds.select_held_out_rows(fold))
        )
        return replace(self, dataset=training_rows, folds=None, held_out_fold=held_out_rows, texts=None)


def prepare_dataset(
    config: TrainerConfig,
    files: DataFiles,
    encoding: RowEncoding,
    work_dir: Path,
) -> PreparedData:
    """Read, check, clean, deduplicate, tokenize and mask all rows of `files`. Write the tokens to files in `work_dir`.

    No row is longer than `model.maxLength` and `encoding.max_positions`. The report accounts for every row:
    rows = kept + validation + test + the sum of rejected.

    Raises `DATA_INVALID` if too many rows are invalid (the message names the first ones), or if the rows cannot be
    split as configured; `DATASET_EMPTY` if no row is left; `CONFIG_INVALID` if there are too many rows for
    near-duplicate search; `MODEL_INVALID` if the tokenizer is not suitable; `MODEL_UNSUPPORTED` if the chat template
    rewrites too many rows.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    boilerplate = _find_boilerplate(config, files, encoding.schema)
    context = _build_context(config, files, encoding)
    with context.ledger.rejections.add_to_errors():
        prepared = _prepare_rows(config, files, context, work_dir, boilerplate)
    _log_report(prepared.report)
    return replace(prepared, template_date=encoding.template_date)


def _prepare_rows(
    config: TrainerConfig,
    files: DataFiles,
    context: PreparationContext,
    work_dir: Path,
    boilerplate: frozenset[int] | None,
) -> PreparedData:
    search = DuplicateSearch(context, work_dir, boilerplate)
    held_out = HeldOutSplits(search, work_dir)
    held_out.write(TEST, files.test_sources)
    held_out.write(VALIDATION, files.validation_sources)
    training_writer = SplitWriter(
        context,
        work_dir / "dataset.arrow",
        search.create_filter(held_out.indexes),
        _build_row_groups(config, boilerplate),
        RowDigests(work_dir / "dataset.digests") if _get_validation_fraction(config) else None,
    )
    training_writer.write(context.reader.read(files.sources))
    _log_unused_columns(context.reader)
    context.ledger.check_rewritten_rows(context.tokenizer)
    context.ledger.check_invalid_rows(context.reader.row_count)
    return _split_rows(config, files.digest, context, training_writer, held_out)


def _log_report(report: DatasetReport) -> None:
    counts = [f"{report.kept:,} to train on", f"{report.validation:,} held out for validation"]
    counts += [] if report.test is None else [f"{report.test:,} held out for the test"]
    counts += [f"{count:,} rejected as {reason}" for reason, count in report.rejected.items()]
    log.info("dataset: of %s read, %s", pluralize(report.rows, "row"), ", ".join(counts))


def _log_unused_columns(reader: RowReader) -> None:
    if reader.unused_columns:
        counts = ", ".join(f"{name} ({pluralize(count, 'row')})" for name, count in reader.unused_columns.items())
        log.info("columns that are not used: %s", counts)


def _split_rows(
    config: TrainerConfig,
    digest: str,
    context: PreparationContext,
    training_writer: SplitWriter,
    held_out: HeldOutSplits,
) -> PreparedData:
    """Hold out validation rows if the config asks for a fraction, assign folds, and report on all rows."""
    held_out_rows = _select_held_out_rows(config, training_writer)
    validation_rows = held_out_rows[~training_writer.stats.is_augmented(held_out_rows)]
    report = context.ledger.build_report(
        context.reader.row_count,
        HeldOutCounts(len(validation_rows) + (held_out.count_rows(VALIDATION) or 0), held_out.count_rows(TEST)),
        training_writer.stats.compute_totals(held_out_rows),
        digest,
    )
    dataset, validation = _split_dataset(training_writer.load_dataset(), held_out_rows, validation_rows)
    archive = training_writer.load_archive()
    texts, validation_texts = _split_dataset(archive, held_out_rows, validation_rows) if archive else (None, None)
    return PreparedData(
        dataset,
        report,
        held_out.load_dataset(VALIDATION) or validation,
        context.ledger.rejections.examples,
        training_writer.stats.compute_length_histogram(),
        _build_folds(config, training_writer, held_out_rows),
        rewritten=context.ledger.rewritten_rows,
        control_tokens=context.ledger.control_tokens,
        unused_columns=context.reader.unused_columns,
        answer_ends=context.ledger.answer_ends,
        locations=_locate_first_rows(training_writer, held_out_rows),
        texts=texts,
        validation_texts=held_out.load_archive(VALIDATION) or validation_texts,
        validation_digests=_load_validation_digests(held_out, training_writer, validation_rows),
        test=held_out.load_dataset(TEST),
        test_texts=held_out.load_archive(TEST),
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
    object_uris = [file.uri for _, source_files in files.sources for file in source_files]
    item_fields = list_item_fields(config.evaluation.graders)
    reader = RowReader(encoding.schema, config.dataset.preparation, item_fields)
    return PreparationContext(
        preparation=config.dataset.preparation,
        schema=encoding.schema,
        limits=limits,
        loss_masker=LossMasker(
            encoding.tokenizer,
            config.training.loss,
            encoding.template_date,
            config.dataset.preparation.control_tokens,
        ),
        ledger=RowLedger(config, object_uris, limits, reader.rejections),
        reader=reader,
        archives_rows=config.evaluation.scores_answers,
        tokenizer=encoding.tokenizer,
    )


def _find_boilerplate(config: TrainerConfig, files: DataFiles, schema: RowSchema) -> frozenset[int] | None:
    """Return the shingles to ignore in comparisons, or None if rows are not compared or are too many to compare.

    Raises `CONFIG_INVALID` if there are too many rows and `deduplicate: near` requires the comparison.
    """
    needs_near_duplicates = config.dataset.preparation.deduplicate == "near"
    if not needs_near_duplicates and not _needs_row_groups(config):
        return None
    finder = BoilerplateFinder()
    item_fields = list_item_fields(config.evaluation.graders)
    rows = RowReader(schema, config.dataset.preparation, item_fields).read(files.all_sources)
    for number, read_row in enumerate(rows):
        if number == MAX_NEAR_DUPLICATE_ROWS and needs_near_duplicates:
            raise TrainerError(
                Reason.CONFIG_INVALID,
                f"dataset.preparation.deduplicate: near works up to {MAX_NEAR_DUPLICATE_ROWS} rows, but the sources "
                "have more; use exact, or set a limit on the sources",
            )
        if number == MAX_NEAR_DUPLICATE_ROWS:
            return None
        finder.add(read_row.row)
    return finder.find_boilerplate()


def _get_validation_fraction(config: TrainerConfig) -> float | None:
    return config.dataset.validation.fraction if config.dataset.validation else None


def _needs_row_groups(config: TrainerConfig) -> bool:
    """Return whether the rows are split by groups: into training and validation rows, or into folds."""
    return _get_validation_fraction(config) is not None or config.training.cross_validation is not None


def _build_row_groups(config: TrainerConfig, boilerplate: frozenset[int] | None) -> RowGroups | None:
    if not _needs_row_groups(config):
        return None
    threshold = config.dataset.preparation.near_threshold
    return RowGroups(None if boilerplate is None else MinHashIndex(threshold, boilerplate))


def _select_held_out_rows(config: TrainerConfig, training_writer: SplitWriter) -> NDArray[np.int64]:
    """Return the numbers of the training rows to hold out for validation."""
    import numpy as np

    fraction = _get_validation_fraction(config)
    if not fraction or not training_writer.row_groups or not training_writer.stats.row_count:
        return np.empty(0, dtype=np.int64)
    seed = config.dataset.validation.seed if config.dataset.validation else 0
    return splits.choose_validation_rows(training_writer.row_groups.compute_keys(), fraction, seed)


def _select_training_rows(row_count: int, held_out_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the rows that are not held out, in order."""
    import numpy as np

    return np.setdiff1d(np.arange(row_count), held_out_rows, assume_unique=True)


def _locate_first_rows(training_writer: SplitWriter, held_out_rows: NDArray[np.int64]) -> list[SourceLocation]:
    """Return the locations of the first rows that are not held out."""
    rows = _select_training_rows(training_writer.stats.row_count, held_out_rows)
    return training_writer.locate_rows(rows[:_MAX_LOCATIONS])


def _build_folds(config: TrainerConfig, training_writer: SplitWriter, held_out_rows: NDArray[np.int64]) -> Folds | None:
    """Assign the rows that are not held out to the folds of cross-validation, if the config asks for it."""
    import numpy as np

    cross_validation = config.training.cross_validation
    if not cross_validation or not training_writer.row_groups:
        return None
    rows = _select_training_rows(training_writer.stats.row_count, held_out_rows)
    group_keys = np.frombuffer(training_writer.row_groups.compute_keys(), dtype=np.uint64)[rows]
    return folds.assign_folds(
        group_keys, training_writer.stats.is_augmented(rows), cross_validation.folds, config.training.seed
    )


def _split_dataset(
    dataset: datasets.Dataset, held_out_rows: NDArray[np.int64], validation_rows: NDArray[np.int64]
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Return the dataset without the held-out rows, and the dataset of the validation rows if there are any."""
    if not len(held_out_rows):
        return dataset, None
    training_rows = _select_training_rows(len(dataset), held_out_rows)
    return dataset.select(training_rows), dataset.select(validation_rows)


def _load_validation_digests(
    held_out: HeldOutSplits, training_writer: SplitWriter, validation_rows: NDArray[np.int64]
) -> DigestTable | None:
    """Return the digests of the validation rows. `validation_rows` are those that are held out of the training rows."""
    if training_writer.digests and len(validation_rows):
        return training_writer.digests.load()[validation_rows]
    return held_out.load_digests(VALIDATION)
