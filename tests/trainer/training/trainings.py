"""Trainings of the tiny model by either backend, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.trainer.tiny_model import config, write_rows

from finetune_trainer.contract import CrossValidation, DatasetReport, Evaluation, Progress, TrainerConfig
from finetune_trainer.records import evaluation as records
from finetune_trainer.telemetry.progress import ProgressReporter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from finetune_trainer.data.folds import Folds
    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.modeling.loading import LoadedModel


def row(start: int, length: int) -> list[int]:
    return [10 + (start * 7 + each) % 200 for each in range(length)]


PROMPTS = [row(each, 3 + each % 3) for each in range(8)]
GOOD, BAD = [row(50, 4 + each % 4) for each in range(8)], [row(90, 3 + each % 5) for each in range(8)]
ROWS: dict[str, Mapping[str, Sequence[Any]]] = {
    "sft": {
        "input_ids": [[*prompt, *answer] for prompt, answer in zip(PROMPTS, GOOD, strict=True)],
        "labels": [[*([-100] * len(prompt)), *answer] for prompt, answer in zip(PROMPTS, GOOD, strict=True)],
    },
    "dpo": {"prompt_ids": PROMPTS, "chosen_ids": GOOD, "rejected_ids": BAD},
    "kto": {
        "prompt_ids": PROMPTS,
        "completion_ids": [*GOOD[:4], *BAD[4:]],
        "label": [True] * 4 + [False] * 4,
    },
}
"""As preparation leaves them, in tokens."""


class Recorder(ProgressReporter):
    """Keeps all that was reported."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []
        self.tracked: list[tuple[int, dict[str, float]]] = []
        super().__init__()

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        self.seen.append(self.get_latest())

    def track(self, step: int, metrics: Mapping[str, float]) -> None:
        """What a tracker is told."""
        self.tracked.append((step, dict(metrics)))


@dataclass(frozen=True)
class Asked:
    """A training, in plain values that another process can be sent."""

    training: dict[str, Any]
    source: dict[str, Any] = field(default_factory=dict)
    """What `model` holds beside the tiny model's own."""
    rows: list[Any] | None = None
    """Rows to prepare; absent: the method's `ROWS`."""
    validate: bool = False
    """Whether to look at the same rows."""
    without: int | None = None
    """A part of the rows that cross-validation divides them into: not to train on, but to look at, by hand."""
    adapter: str | None = None
    resume: str | None = None
    evaluation: dict[str, Any] | None = None
    """What `evaluation` holds; absent: nothing is evaluated."""
    save_at: int | None = None
    """The step whose state is left in `<folder>/trainer`."""

    @property
    def config(self) -> TrainerConfig:
        made = config(self.training)
        evaluation = Evaluation.model_validate(self.evaluation or {})
        return made.model_copy(update={"model": made.model.model_copy(update=self.source), "evaluation": evaluation})

    def prepared(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreparedData:
        made = self._prepared(tokenizer, folder)
        if self.without is None:
            return made
        fold = made.exclude_fold(self.without)
        return replace(fold, validation=fold.held_out_fold, held_out_fold=None)

    def _prepared(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreparedData:
        from finetune_trainer.data import preparation

        if self.rows is None:
            asked = self.config.training
            made = prepared(asked.method, self.validate)
            return replace(made, folds=divided(len(made.dataset), asked.cross_validation))
        sources = [(self.config.dataset.sources[0], [write_rows(folder / "rows", self.rows)])]
        made = preparation.prepare_dataset(self.config, preparation.DataFiles(sources, "sha256:0"), tokenizer, folder)
        return replace(made, validation=made.dataset) if self.validate else made


def divided(rows: int, asked: CrossValidation | None) -> Folds | None:
    import numpy as np

    from finetune_trainer.data.folds import assign_folds

    if asked is None:
        return None
    return assign_folds(np.arange(rows, dtype=np.uint64), np.zeros(rows, dtype=np.bool_), asked.folds, 42)


def prepared(method: str, validate: bool = False) -> PreparedData:
    import datasets

    from finetune_trainer.data.preparation import PreparedData

    rows = datasets.Dataset.from_dict(dict(ROWS[method]))
    report = DatasetReport(
        rows=len(rows), kept=len(rows), rejected={}, tokens=0, supervised_tokens=0, digest="sha256:0"
    )
    return PreparedData(dataset=rows, report=report, validation=rows if validate else None)


@dataclass(frozen=True)
class Trained:
    """What came of it; the model itself only where it was trained in this process."""

    folder: Path
    """What the run wrote: `adapter/` is the result."""
    metrics: dict[str, float]
    progress: list[Progress]
    report: DatasetReport
    trainable: int
    loaded: LoadedModel | None = None
    evaluation: records.EvaluationReport | None = None
    fold_losses: list[float] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Of each step."""
        by_step = {each.step: each.loss for each in self.progress if each.step and each.loss is not None}
        return list(by_step.values())

    @property
    def model(self) -> PeftModel:
        """In memory."""
        assert self.loaded
        return self.loaded.model

    @property
    def weights(self) -> dict[str, Any]:
        """The adapter's, as they were published."""
        from safetensors.torch import load_file

        return load_file(self.folder / "adapter" / "adapter_model.safetensors")

    def to_json(self) -> dict[str, Any]:
        """All but the model."""
        plain: dict[str, Any] = {"progress": [each.to_json() for each in self.progress]}
        evaluation = self.evaluation and self.evaluation.to_json()
        plain |= {"metrics": self.metrics, "trainable": self.trainable, "fold_losses": self.fold_losses}
        return {**plain, "report": self.report.to_json(), "evaluation": evaluation}

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> Trained:
        progress = [Progress.model_validate(each) for each in content["progress"]]
        report = DatasetReport.model_validate(content["report"])
        found = content["evaluation"] and records.EvaluationReport.model_validate(content["evaluation"])
        known = content["metrics"], progress, report, content["trainable"], None, found, content["fold_losses"]
        return cls(folder, *known)


Run = Callable[..., Trained]


def train(asked: Asked, model_dir: Path, folder: Path, progress: Recorder | None = None) -> Trained:
    """As a run does between download and upload; the result is in `<folder>/adapter`."""
    from finetune_trainer.modeling import loading
    from finetune_trainer.publishing import export
    from finetune_trainer.training import train

    settings, recorder = asked.config, progress or Recorder()
    backend = loading.choose_backend(settings)
    loading.import_backend(backend)
    # Only now: they import what the backend changes.
    from finetune_trainer.evaluation import runner
    from finetune_trainer.training import cross_validation

    words = loading.load_tokenizer(model_dir)
    rows = asked.prepared(words, folder)
    tuned = loading.load_model(settings, model_dir, backend, Path(asked.adapter) if asked.adapter else None)
    loaded = loading.LoadedModel(tuned, words, backend)
    callbacks = [] if asked.save_at is None else [saver(asked.save_at)]
    session = train.TrainingSession(
        recorder, callbacks, Path(asked.resume) if asked.resume else None, log_metrics=recorder.track
    )
    made = cross_validation.train_all(settings, loaded, rows, session, folder)
    found = None
    if asked.evaluation is not None:
        found = runner.evaluate(runner.EvaluationInput(settings, loaded, rows, made), recorder)
    export.export_adapter(settings, loaded, folder / "adapter", "sha256:0", model_dir)
    trainable, _ = tuned.get_nb_trainable_parameters()
    known = made.metrics, recorder.seen, rows.report, trainable, loaded, found, list(made.fold_losses)
    return Trained(folder, *known)


def saver(step: int) -> TrainerCallback:
    """Asks for a checkpoint after that step."""
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class Saver(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
            control.should_save = state.global_step == step

    return Saver()
