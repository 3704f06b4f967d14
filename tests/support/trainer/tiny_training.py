"""Training the tiny model with either backend, and the outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.trainer.tiny_model import config, write_rows

from finetune_trainer.contract import CrossValidation, DatasetReport, Evaluation, Progress, TrainerConfig
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.records import evaluation as records
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.training.methods import get_method

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from finetune_trainer.data.folds import Folds
    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.data.row_digests import DigestTable
    from finetune_trainer.modeling.loading import LoadedModel


def make_token_ids(start: int, length: int) -> list[int]:
    return [10 + (start * 7 + index) % 200 for index in range(length)]


PROMPTS = [make_token_ids(index, 3 + index % 3) for index in range(8)]
CHOSEN_ANSWERS, REJECTED_ANSWERS = (
    [make_token_ids(50, 4 + index % 4) for index in range(8)],
    [make_token_ids(90, 3 + index % 5) for index in range(8)],
)
ROWS_BY_METHOD: dict[str, Mapping[str, Sequence[Any]]] = {
    "sft": {
        "input_ids": [[*prompt, *answer] for prompt, answer in zip(PROMPTS, CHOSEN_ANSWERS, strict=True)],
        "labels": [[*([-100] * len(prompt)), *answer] for prompt, answer in zip(PROMPTS, CHOSEN_ANSWERS, strict=True)],
    },
    "dpo": {"prompt_ids": PROMPTS, "chosen_ids": CHOSEN_ANSWERS, "rejected_ids": REJECTED_ANSWERS},
    "kto": {
        "prompt_ids": PROMPTS,
        "completion_ids": [*CHOSEN_ANSWERS[:4], *REJECTED_ANSWERS[4:]],
        "label": [True] * 4 + [False] * 4,
    },
}
"""Tokenized rows in the columns that data preparation writes, by method."""


class RecordingReporter(ProgressReporter):
    """Records all progress and all tracked metrics."""

    def __init__(self) -> None:
        self.reported: list[Progress] = []
        self.tracked_metrics: list[tuple[int, dict[str, float]]] = []
        super().__init__()

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        self.reported.append(self.get_latest())

    def track(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics that are sent to a tracker."""
        self.tracked_metrics.append((step, dict(metrics)))


@dataclass(frozen=True)
class TrainingRequest:
    """A training as plain values, which can be sent to another process."""

    training: dict[str, Any]
    source: dict[str, Any] = field(default_factory=dict)
    """Fields of `model` that differ from those of the tiny model."""
    rows: list[Any] | None = None
    """Rows to prepare. None: the rows of the method in `ROWS_BY_METHOD`."""
    test_rows: list[Any] | None = None
    """Rows of `evaluation.test`, if `rows` are given."""
    validate: bool = False
    """Whether the training rows are the validation rows too."""
    without: int | None = None
    """Number of the cross-validation fold that is held out from training and used as validation rows."""
    adapter: str | None = None
    resume: str | None = None
    evaluation: dict[str, Any] | None = None
    """Fields of `evaluation`. None: nothing is evaluated."""
    baselines: dict[str, str] = field(default_factory=dict)
    """Folders of the adapters of `evaluation.baselines`, by name."""
    save_at: int | None = None
    """The step after which a checkpoint is saved to `<folder>/trainer`."""

    @property
    def config(self) -> TrainerConfig:
        base_config = config(self.training)
        evaluation = Evaluation.model_validate(self.evaluation or {})
        source = self.source | ({"adapter_uri": "s3://adapters/first/"} if self.adapter else {})
        return base_config.model_copy(
            update={"model": base_config.model.model_copy(update=source), "evaluation": evaluation}
        )

    def prepare(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreparedData:
        data = self._prepare_rows(tokenizer, folder)
        if self.without is None:
            return data
        fold = data.exclude_fold(self.without)
        return replace(fold, validation=fold.held_out_fold, held_out_fold=None)

    def _prepare_rows(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreparedData:
        from finetune_trainer.data import preparation

        if self.rows is None:
            training = self.config.training
            data = make_prepared_data(training.method, self.validate)
            return replace(data, folds=make_folds(len(data.dataset), training.cross_validation))
        sources = [(self.config.dataset.sources[0], [write_rows(folder / "rows", self.rows)])]
        test_rows = [write_rows(folder / "test-rows", self.test_rows)] if self.test_rows else []
        test = [(self.config.dataset.sources[0], test_rows)] if test_rows else []
        encoding = RowEncoding(tokenizer, get_method(self.config))
        files = preparation.DataFiles(sources, "sha256:0", test_sources=test)
        data = preparation.prepare_dataset(self.config, files, encoding, folder)
        if not self.validate:
            return data
        digests = make_digests(len(data.dataset))
        return replace(data, validation=data.dataset, validation_texts=data.texts, validation_digests=digests)


def make_folds(rows: int, cross_validation: CrossValidation | None) -> Folds | None:
    import numpy as np

    from finetune_trainer.data.folds import assign_folds

    if cross_validation is None:
        return None
    return assign_folds(np.arange(rows, dtype=np.uint64), np.zeros(rows, dtype=np.bool_), cross_validation.folds, 42)


def make_digests(count: int) -> DigestTable:
    """Return invented digests of rows."""
    import numpy as np

    digests = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(count))
    return np.frombuffer(digests, dtype=np.uint8).reshape(count, 32)


def make_prepared_data(method: str, validate: bool = False) -> PreparedData:
    import datasets

    from finetune_trainer.data.preparation import PreparedData

    rows = datasets.Dataset.from_dict(dict(ROWS_BY_METHOD[method]))
    report = DatasetReport(
        rows=len(rows), kept=len(rows), rejected={}, tokens=0, supervised_tokens=0, digest="sha256:0"
    )
    if not validate:
        return PreparedData(dataset=rows, report=report)
    return PreparedData(dataset=rows, report=report, validation=rows, validation_digests=make_digests(len(rows)))


@dataclass(frozen=True)
class TrainingOutcome:
    """The outcome of a training. It contains the model only if it was trained in this process."""

    folder: Path
    """Folder of the run; `adapter/` is its result."""
    metrics: dict[str, float]
    progress: list[Progress]
    report: DatasetReport
    trainable: int
    loaded: LoadedModel | None = None
    evaluation: records.EvaluationReport | None = None
    fold_losses: list[float] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Return the loss of each step."""
        by_step = {report.step: report.loss for report in self.progress if report.step and report.loss is not None}
        return list(by_step.values())

    @property
    def model(self) -> PeftModel:
        """Return the trained model in memory."""
        assert self.loaded
        return self.loaded.model

    @property
    def weights(self) -> dict[str, Any]:
        """Return the tensors of the exported adapter by name."""
        from safetensors.torch import load_file

        return load_file(self.folder / "adapter" / "adapter_model.safetensors")

    def to_json(self) -> dict[str, Any]:
        """Return all values except the model."""
        plain: dict[str, Any] = {"progress": [report.to_json() for report in self.progress]}
        evaluation = self.evaluation and {
            **self.evaluation.to_json(),
            "rows": [row.to_json() for row in self.evaluation.rows],
        }
        plain |= {"metrics": self.metrics, "trainable": self.trainable, "fold_losses": self.fold_losses}
        return {**plain, "report": self.report.to_json(), "evaluation": evaluation}

    @classmethod
    def from_json(cls, folder: Path, content: Mapping[str, Any]) -> TrainingOutcome:
        progress = [Progress.model_validate(item) for item in content["progress"]]
        report = DatasetReport.model_validate(content["report"])
        evaluation = content["evaluation"] and records.EvaluationReport.model_validate(content["evaluation"])
        values = content["metrics"], progress, report, content["trainable"], None, evaluation, content["fold_losses"]
        return cls(folder, *values)


RunTraining = Callable[..., TrainingOutcome]


def train(
    request: TrainingRequest, model_dir: Path, folder: Path, progress: RecordingReporter | None = None
) -> TrainingOutcome:
    """Prepare, train, evaluate and export as a run does. The adapter is in `<folder>/adapter`."""
    from finetune_trainer.modeling import backends, loading
    from finetune_trainer.publishing import export
    from finetune_trainer.training.state import TrainingSession
    from finetune_trainer.training.train import train

    settings, recorder = request.config, progress or RecordingReporter()
    backend = backends.choose_backend(settings)
    backends.import_backend(backend)
    # Imported after the backend, which patches the libraries that these modules import.
    from finetune_trainer.evaluation import runner

    tokenizer = loading.load_tokenizer(model_dir)
    data = request.prepare(tokenizer, folder)
    peft_model = loading.load_model(settings, model_dir, backend, Path(request.adapter) if request.adapter else None)
    loaded = loading.LoadedModel(peft_model, tokenizer, backend)
    callbacks = [] if request.save_at is None else [make_save_callback(request.save_at)]
    session = TrainingSession(
        recorder, callbacks, Path(request.resume) if request.resume else None, log_metrics=recorder.track
    )
    trained = train(settings, loaded, data, session, folder)
    evaluation = None
    if request.evaluation is not None:
        baseline_dirs = {name: Path(baseline) for name, baseline in request.baselines.items()}
        evaluation_input = runner.EvaluationInput(settings, loaded, data, trained, baseline_dirs=baseline_dirs)
        evaluation = runner.evaluate(evaluation_input, recorder)
    export.export_adapter(settings, loaded, folder / "adapter", "sha256:0", model_dir)
    trainable, _ = peft_model.get_nb_trainable_parameters()
    values = trained.metrics, recorder.reported, data.report, trainable, loaded, evaluation, list(trained.fold_losses)
    return TrainingOutcome(folder, *values)


def make_save_callback(step: int) -> TrainerCallback:
    """Return a callback that requests a checkpoint after `step`."""
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class SaveAtStep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
            control.should_save = state.global_step == step

    return SaveAtStep()
