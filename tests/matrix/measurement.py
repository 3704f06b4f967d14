"""Measures with the functions of a run what works for a tiny model of a family."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from tests.support.trainer.model_families import build_family, cross_entropy, load_published_class
from tests.support.trainer.tiny_model import chat
from tests.support.trainer.tiny_training import RecordingReporter, TrainingRequest

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data.loss_masking import encode_prompt
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation import runner
from finetune_trainer.modeling import loading
from finetune_trainer.modeling.generation import TextGenerator
from finetune_trainer.modeling.model_config import load_model_config
from finetune_trainer.modeling.positions import get_max_positions, limit_max_length
from finetune_trainer.modeling.quantization import QuantizationCoverageError
from finetune_trainer.modeling.support_matrix import NO_PREFIX, NOT_MEASURED, PARTIAL_PREFIX, YES
from finetune_trainer.publishing import export, merge, merge_check
from finetune_trainer.training.state import TrainingSession, TrainResult
from finetune_trainer.training.train import train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune_trainer.data.preparation import PreparedData

ERROR_PREFIX = "error: "
_DEFECTS = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""Errors of libraries. A run must translate them, so each is a defect of the trainer."""
_REFUSALS = (Reason.CONFIG_INVALID, Reason.MODEL_INVALID, Reason.MODEL_UNSUPPORTED, Reason.NON_FINITE_LOSS)
_TRAINING = {"maxSteps": 2, "learningRate": 1e-2, "batchSize": 2, "gradientAccumulation": 2}
_EVALUATION = {"task": "generation", "maxNewTokens": 8, "maxSamples": 4}
_MAX_LOGIT_DIFFERENCE = 0.01
"""Logits have a standard deviation of about 3. The order of sums alone changes them by 1e-5."""
_MAX_MESSAGE_LENGTH = 400
_QUESTIONS = ("How do I turn on the lamp?", "Capital of France?", "2 + 2?", "Name a colour that is not red, please.")
_ANSWERS = ("Tap the top once.", "Paris.", "4", "Blue")


def shorten(message: str) -> str:
    """Return a message in one line, of at most 400 characters."""
    line = " ".join(message.split())
    return line if len(line) <= _MAX_MESSAGE_LENGTH else line[: _MAX_MESSAGE_LENGTH - 3] + "..."


class MeasurementError(RuntimeError):
    """The trainer reports success, but its result is wrong."""


@dataclass
class FamilyMeasurement:
    """The cells of a family by column, and the tracebacks of defects."""

    family: str
    cells: dict[str, str] = field(default_factory=dict)
    tracebacks: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def measure(self, *columns: str) -> Iterator[None]:
        """Set the cells of the columns to the outcome of the block: `yes`, `partial: <reason>`, `no: <reason>` or
        `error: <problem>`."""
        try:
            yield
        except QuantizationCoverageError as error:
            self._record(columns, PARTIAL_PREFIX + shorten(error.message.partition(", less than")[0]), error)
        except TrainerError as error:
            if _is_cpu_kernel_error(columns, error):
                self.cells |= dict.fromkeys(columns, NOT_MEASURED)
                return
            prefix = NO_PREFIX if error.reason in _REFUSALS else f"{ERROR_PREFIX}{error.reason}: "
            self._record(columns, prefix + shorten(error.message), error)
        except _DEFECTS as error:
            self._record(columns, f"{ERROR_PREFIX}{type(error).__name__}: {shorten(str(error))}", error)
        else:
            self.cells |= dict.fromkeys(columns, YES)

    def _record(self, columns: Sequence[str], cell: str, error: Exception) -> None:
        self.cells |= dict.fromkeys(columns, cell)
        if cell.startswith(ERROR_PREFIX):
            self.tracebacks |= dict.fromkeys(columns, "".join(traceback.format_exception(error)))

    def has(self, column: str) -> bool:
        """Return whether the cell is `yes`."""
        return self.cells.get(column) == YES


def _is_cpu_kernel_error(columns: Sequence[str], error: TrainerError) -> bool:
    """Return whether an operator of bitsandbytes failed, which has other implementations for GPUs: its
    `int8_vectorwise_quant` for CPUs accepts no inputs of three dimensions."""
    return columns[0] == "int8" and isinstance(error.__cause__, RuntimeError)


@dataclass(frozen=True)
class TunedModel:
    """A trained model and what it was trained from."""

    config: TrainerConfig
    model_dir: Path
    loaded: loading.LoadedModel
    data: PreparedData
    result: TrainResult


def measure_family(family: str) -> FamilyMeasurement:
    """Build a tiny model of the family, and measure all columns except `unsloth`."""
    measurement = FamilyMeasurement(family)
    with TemporaryDirectory(prefix="matrix-") as folder:
        model_dir = build_family(Path(folder) / "model", family)
        with measurement.measure("loads"):
            load(TrainingRequest(_TRAINING), model_dir)
        if measurement.has("loads"):
            _measure_results(measurement, model_dir, Path(folder))
            for column, request in _OPTIONS.items():
                with measurement.measure(column):
                    train_model(request, model_dir, Path(folder) / column)
    return measurement


def _measure_results(measurement: FamilyMeasurement, model_dir: Path, folder: Path) -> None:
    """Train with sft, and measure what happens to the trained model. The merge is last, since it uses the model up."""
    tuned = None
    with measurement.measure("sft"):
        tuned = train_model(TrainingRequest(_TRAINING, evaluation=_EVALUATION), model_dir, folder / "sft")
        check_base_loss(tuned)
    if tuned is None:
        return
    steps: Mapping[str, Callable[[TunedModel, Path], None]] = {
        "evaluates": check_evaluation,
        "exports": check_export,
        "merges": check_merge,
    }
    for column, check in steps.items():
        with measurement.measure(column):
            check(tuned, folder)


_OPTIONS = {
    "dpo": TrainingRequest({**_TRAINING, "method": "dpo"}),
    "packs": TrainingRequest({**_TRAINING, "packing": True}),
    "nf4": TrainingRequest(_TRAINING, source={"quantization": "nf4"}),
    "int8": TrainingRequest(_TRAINING, source={"quantization": "int8"}),
}
"""Trainings by the column that they measure."""


def load(request: TrainingRequest, model_dir: Path) -> tuple[TrainerConfig, loading.LoadedModel]:
    """Check and load a model as a run does. Return it with the config that is limited to its positions."""
    tokenizer = loading.load_tokenizer(model_dir)
    model_config = load_model_config(model_dir)
    loading.check_vocabulary(tokenizer, model_config.get_text_config().vocab_size)
    config = limit_max_length(request.config, get_max_positions(model_config))
    return config, loading.LoadedModel(loading.load_model(config, model_dir, "transformers"), tokenizer, "transformers")


def train_model(request: TrainingRequest, model_dir: Path, folder: Path) -> TunedModel:
    """Load a model and train it for two steps after the preflight checks."""
    folder.mkdir()
    config, loaded = load(request, model_dir)
    data = prepare_rows(config.training.method, loaded.tokenizer)
    result = train(config, loaded, data, TrainingSession(RecordingReporter()), folder)
    if len(result.losses) != config.training.max_steps or not all(math.isfinite(loss) for _, loss in result.losses):
        raise MeasurementError(f"the losses are {result.losses}")
    return TunedModel(config, model_dir, loaded, data, result)


_prepared: dict[str, PreparedData] = {}


def prepare_rows(method: str, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Prepare the rows of a method once: all families have the same tokenizer."""
    if method not in _prepared:
        rows = [chat(question, answer) for question, answer in zip(_QUESTIONS, _ANSWERS, strict=True)]
        if method == "dpo":
            rows = [
                {"prompt": question, "chosen": answer, "rejected": "I do not know."}
                for question, answer in zip(_QUESTIONS, _ANSWERS, strict=True)
            ]
        folder = Path(_scratch().name) / method
        folder.mkdir()
        evaluation = _EVALUATION if method == "sft" else {}
        request = TrainingRequest({**_TRAINING, "method": method}, rows=rows, validate=True, evaluation=evaluation)
        _prepared[method] = request.prepare(tokenizer, folder)
    return _prepared[method]


@cache
def _scratch() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="matrix-rows-")


def check_base_loss(tuned: TunedModel) -> None:
    """Compare the loss before the first step with the cross-entropy of the logits of the published class."""
    reported = tuned.result.metrics["baseEvalLoss"]
    expected = cross_entropy(tuned.model_dir, tuned.data.dataset[:])
    if not math.isclose(reported, expected, rel_tol=1e-4):
        raise MeasurementError(f"the loss of the base model is {reported:.6g}, that of its logits {expected:.6g}")


def check_evaluation(tuned: TunedModel, _: Path) -> None:
    """Evaluate, and compare the greedy answers of a padded batch with the answers to each prompt alone."""
    inputs = runner.EvaluationInput(tuned.config, tuned.loaded, tuned.data, tuned.result)
    report = runner.evaluate(inputs, RecordingReporter())
    missing = [message for message in report.missing if not message.startswith("complete answers")]
    if missing or len(report.samples) != len(_QUESTIONS):
        raise MeasurementError(f"the evaluation lacks {missing}, it has {len(report.samples)} answers")
    prompts = [encode_prompt(tuned.loaded.tokenizer, question) for question in _QUESTIONS]
    generator = TextGenerator(tuned.loaded.model, tuned.loaded.tokenizer, tuned.config.evaluation.max_new_tokens)
    together, alone = generator.generate(prompts), [generator.generate([prompt])[0] for prompt in prompts]
    if together != alone:
        raise MeasurementError(f"answers in a padded batch are {together}, alone {alone}")


def check_export(tuned: TunedModel, folder: Path) -> None:
    """Export the adapter, load it with PEFT on the class that config.json names, and compare logits."""
    target = folder / "adapter"
    export.export_adapter(tuned.config, tuned.loaded, target, "sha256:0", tuned.model_dir)
    plain = PeftModel.from_pretrained(load_published_class(tuned.model_dir), str(target)).eval()
    logits = compute_logits(plain)
    with plain.disable_adapter():
        base_logits = compute_logits(plain)
    check_logits(logits, compute_logits(tuned.loaded.model), "the adapter on the published class")
    if torch.equal(logits, base_logits):
        raise MeasurementError("the adapter does not change the logits of the published class")


def check_merge(tuned: TunedModel, folder: Path) -> None:
    """Merge, load the merged model with the class that its config.json names, and compare logits."""
    expected = compute_logits(tuned.loaded.model.eval())
    texts = merge_check.select_check_texts(tuned.data, tuned.loaded)
    inputs = merge.MergeInputs(tuned.config, tuned.model_dir, texts, lambda: None)
    merged = merge.merge_adapter(inputs, tuned.loaded, folder / "merged")
    check_logits(compute_logits(load_published_class(merged.folder)), expected, "the merged model")


def compute_logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    """Return the logits of a few arbitrary tokens."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(20, 44)[None], use_cache=False).logits
    return logits


def check_logits(logits: torch.Tensor, expected: torch.Tensor, subject: str) -> None:
    """Raise `MeasurementError` if logits differ by more than rounding."""
    difference = float((logits - expected).abs().max())
    if not difference <= _MAX_LOGIT_DIFFERENCE:
        raise MeasurementError(f"a logit of {subject} differs by {difference:.4g} from the trained model")
