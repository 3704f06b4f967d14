"""Labels given by both models beside the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_trainer.evaluation.class_labels import Labels
from finetune_trainer.evaluation.intervals import proportion, proportion_change, resampled
from finetune_trainer.records.evaluation import Confusion, Measure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from finetune_trainer.evaluation.intervals import Rows

    Numbers = NDArray[np.intp]


def classified(references: Sequence[str], base: Sequence[str], tuned: Sequence[str]) -> tuple[list[Measure], Confusion]:
    """`accuracy` and `macroF1`, 0 to 1, and what each model takes for what."""
    import numpy as np

    labels = Labels(references)
    true, before, after = (np.array([labels.number(each) for each in texts]) for texts in (references, base, tuned))
    counts, base_counts = (_matrix(true, given, labels.other).tolist() for given in (after, before))
    measures = [share("accuracy", (before == true).tolist(), (after == true).tolist()), _f1(true, before, after)]
    return measures, Confusion(labels=labels.names, counts=counts, base_counts=base_counts)


def share(name: str, base: Sequence[bool], tuned: Sequence[bool]) -> Measure:
    """The share of rows that each model gets right."""
    return Measure(
        name=name,
        higher_is_better=True,
        base=proportion(sum(base), len(base)),
        tuned=proportion(sum(tuned), len(tuned)),
        change=proportion_change(base, tuned),
    )


def _f1(true: Numbers, base: Numbers, tuned: Numbers) -> Measure:
    count, other = len(true), int(true.max()) + 1

    def of(given: Numbers, rows: Rows) -> float:
        return _macro_f1(_matrix(true[rows], given[rows], other))

    return Measure(
        name="macroF1",
        higher_is_better=True,
        base=resampled(lambda rows: of(base, rows), count),
        tuned=resampled(lambda rows: of(tuned, rows), count),
        change=resampled(lambda rows: of(tuned, rows) - of(base, rows), count),
    )


def _matrix(true: Numbers, given: Numbers, other: int) -> Numbers:
    """Rows are true labels, columns given ones; the last column is `other`."""
    import numpy as np

    cells = np.bincount(true * (other + 1) + given, minlength=other * (other + 1))
    return cells.reshape(other, other + 1)


def _macro_f1(matrix: Numbers) -> float:
    """F1 of each label, averaged over the labels that occur: a resample may have lost a rare one.

    As scikit-learn's f1_score(average="macro"), which takes a hundred times as long on a resample.
    """
    hits, true, given = matrix.diagonal(), matrix.sum(axis=1), matrix[:, :-1].sum(axis=0)
    occur = true > 0
    return float((2 * hits[occur] / (true + given)[occur]).mean())
