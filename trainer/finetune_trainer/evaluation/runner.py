"""Evaluates the tuned model in comparison with its base model. Imports torch, so import it only after the backend."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import BiasEvaluation, TrainerConfig
from finetune_trainer.evaluation import baselines, gate, messages, overfitting, row_scores
from finetune_trainer.evaluation.answer_scoring import AnswerScorer
from finetune_trainer.evaluation.answers import BASE, TUNED, PromptAnswers, RowAnswers, SamplePromptAnswers
from finetune_trainer.evaluation.bias.scoring import BiasScorer
from finetune_trainer.evaluation.bias.sentence_pairs import SentencePair, load_builtin_pairs
from finetune_trainer.evaluation.catastrophic_forgetting import measure_forgetting
from finetune_trainer.evaluation.curves import downsample_points
from finetune_trainer.evaluation.forgetting import judge_forgetting
from finetune_trainer.evaluation.held_out_test import HeldOutTestEvaluation
from finetune_trainer.evaluation.losses import (
    build_fold_measures,
    measure_eval_loss,
    measure_perplexity,
)
from finetune_trainer.evaluation.prompts import TemplateFrame, select_evenly, select_rows
from finetune_trainer.evaluation.row_scores import ValidationLosses
from finetune_trainer.graders.suite import GraderSuite
from finetune_trainer.modeling.baseline_adapter import use_baseline
from finetune_trainer.modeling.batch_limits import choose_new_tokens, limit_loss_tokens
from finetune_trainer.modeling.likelihood import compute_dataset_losses, measure_base_and_tuned
from finetune_trainer.modeling.loading import LoadedModel
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.modeling.precision import autocast_like_training, resolve_precision
from finetune_trainer.records.evaluation import (
    BiasResult,
    ConfusionMatrix,
    CrossValidationResult,
    Estimate,
    EvaluationReport,
    ForgettingResult,
    LossPoint,
    Measure,
    OverfittingResult,
    RowScores,
    Sample,
)
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.training import early_stopping
from finetune_trainer.training.methods import get_method

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.training.state import TrainResult

log = logging.getLogger(__name__)

_MAX_TRAINING_ROWS = 1000
"""Training rows whose loss is measured, evenly spaced over all rows."""
_MAX_SHOWN_ROWS = 8
"""Validation rows that the report shows with the answers of both models."""
_MEASUREMENT_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that a measurement may raise. The finished training is published without the measurement, which is reported as
missing."""


@dataclass(frozen=True)
class EvaluationInput:
    """The trained model, its data, and the result of its training."""

    config: TrainerConfig
    loaded_model: LoadedModel
    prepared: PreparedData
    train_result: TrainResult
    sentence_pairs: Sequence[SentencePair] = ()
    """Sentence pairs about groups of people that replace the built-in ones."""
    baseline_dirs: Mapping[str, Path] = field(default_factory=dict)
    """Folders of the adapters of `evaluation.baselines`, by name."""

    @property
    def max_batch_tokens(self) -> int:
        """Maximum number of tokens of a batch whose losses are measured."""
        return limit_loss_tokens(self.config, get_max_positions(self.loaded_model.model.config))

    @property
    def published_step(self) -> int:
        """The step of the evaluation of the published adapter. Raises `ValueError` if there was no evaluation."""
        published = early_stopping.find_published(self.train_result.eval_results, self.config.training.early_stopping)
        if published is None:
            raise ValueError("the training has not evaluated the published adapter")
        return published.step


@dataclass
class EvaluationResults:
    """The results so far."""

    scorer: AnswerScorer
    measures: list[Measure] = field(default_factory=list)
    confusion: ConfusionMatrix | None = None
    losses: ValidationLosses | None = None
    row_answers: RowAnswers | None = None
    prompt_answers: SamplePromptAnswers | None = None
    training_loss: float | None = None
    forgetting: ForgettingResult | None = None
    bias: BiasResult | None = None
    test: HeldOutTestEvaluation | None = None
    missing: list[str] = field(default_factory=list)

    def add_comparisons(self, baseline: str, compared: Sequence[Measure]) -> None:
        """Add the comparison with a baseline to the measures; in `compared` it is in the place of the base model."""
        self.measures = baselines.add_comparisons(self.measures, baseline, compared)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Run a part of the evaluation that may fail without failing the run."""
        log.info("evaluation: %s", name)
        try:
            yield
        except _MEASUREMENT_ERRORS as error:
            log.warning("evaluation: %s could not be measured: %s: %s", name, type(error).__name__, error)
            self.missing.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")


def evaluate(inputs: EvaluationInput, progress: ProgressReporter) -> EvaluationReport:
    """Measure everything that the config requests and the data allows. The rest is named in `missing`.

    Raises `GRADER_FAILED` if a grader leaves too many answers without a score.
    """
    settings = inputs.config.evaluation
    with GraderSuite(settings.graders, settings.endpoints, progress.heartbeat) as graders:
        results = EvaluationResults(AnswerScorer(inputs.config, graders))
        _measure(inputs, results, progress.heartbeat)
        return _build_report(inputs, results)


def _measure(inputs: EvaluationInput, results: EvaluationResults, heartbeat: Callable[[], None]) -> None:
    config = inputs.config
    with autocast_like_training(inputs.loaded_model.model.device, resolve_precision(config)):
        if get_method(config).uses_token_loss:
            _measure_losses(inputs, results, heartbeat)
        else:
            results.measures += _list_training_measures(inputs)
        if config.evaluation.scores_answers and inputs.prepared.validation is not None:
            with results.section(f"answers for {config.evaluation.task or 'graders'}"):
                _measure_answers(inputs, results, heartbeat)
        if inputs.prepared.test is not None:
            loaded, scorer = inputs.loaded_model, results.scorer
            results.test = HeldOutTestEvaluation(config, loaded, inputs.prepared, heartbeat, scorer)
            results.missing += results.test.measure_models(results.section)
        if config.evaluation.sample_prompts:
            with results.section("sample prompts"):
                _answer_sample_prompts(inputs, results, heartbeat)
        for name, folder in inputs.baseline_dirs.items():
            with results.section(f"baseline {name}"), use_baseline(inputs.loaded_model.model, folder):
                _measure_baseline(inputs, name, results, heartbeat)
        if config.evaluation.bias:
            with results.section("bias"):
                _measure_bias(inputs, config.evaluation.bias, results, heartbeat)


def _measure_losses(inputs: EvaluationInput, results: EvaluationResults, heartbeat: Callable[[], None]) -> None:
    """Measure the perplexity of general text, and the loss of validation rows if there are any."""
    with results.section("general text"):
        measure = measure_forgetting(inputs.loaded_model, heartbeat, inputs.max_batch_tokens)
        results.forgetting = judge_forgetting(measure)
    if inputs.prepared.validation is not None:
        with results.section("validation loss"):
            _measure_validation_loss(inputs, results, heartbeat)


def _measure_validation_loss(
    inputs: EvaluationInput, results: EvaluationResults, heartbeat: Callable[[], None]
) -> None:
    """Take the losses of the published model from the training, and measure those of the base model, and those of some
    training rows."""
    model, history = inputs.loaded_model.model, inputs.train_result.row_losses
    tuned_sums = history.sums_by_step[inputs.published_step]
    base_sums = _get_base_sums(inputs, heartbeat)
    if not all(map(math.isfinite, (*tuned_sums, *base_sums))):
        raise ArithmeticError("the loss of a validation row is not finite")
    results.losses = ValidationLosses(history.token_counts, {BASE: base_sums, TUNED: tuned_sums})
    results.measures.append(measure_eval_loss(history.token_counts, base_sums, tuned_sums))
    with results.section("perplexity"):
        results.measures.append(measure_perplexity(history.token_counts, base_sums, tuned_sums))
    training_rows = select_evenly(inputs.prepared.dataset, min(len(tuned_sums), _MAX_TRAINING_ROWS))
    results.training_loss = compute_dataset_losses(model, training_rows, heartbeat, inputs.max_batch_tokens).mean


def _get_base_sums(inputs: EvaluationInput, heartbeat: Callable[[], None]) -> Sequence[float]:
    """Return the losses of the base model. A new adapter does not change the model before the first step, when the
    training measured it."""
    if inputs.config.model.adapter_uri is None:
        return inputs.train_result.row_losses.sums_by_step[0]
    model, rows = inputs.loaded_model.model, _require_validation(inputs)
    with model.disable_adapter():
        return compute_dataset_losses(model, rows, heartbeat, inputs.max_batch_tokens).sums


def _list_training_measures(inputs: EvaluationInput) -> list[Measure]:
    """Return what the training measured with its own loss: before the first step, and of the published adapter."""
    eval_results, metrics = inputs.train_result.eval_results, inputs.train_result.metrics
    count = len(inputs.prepared.validation or [])
    start = [result.loss for result in eval_results[:1] if result.step == 0 and math.isfinite(result.loss)]
    base_loss = Estimate(value=start[0], samples=count) if start else None
    return [
        Measure(
            name=name,
            higher_is_better=name != "evalLoss",
            # Before the first step all rewards are 0, so a metric of the method would only compare equal ones.
            base=base_loss if name == "evalLoss" else None,
            tuned=Estimate(value=metrics[name], samples=count),
        )
        for name in ("evalLoss", *get_method(inputs.config).extra_metrics)
        if name in metrics
    ]


def _measure_answers(inputs: EvaluationInput, results: EvaluationResults, heartbeat: Callable[[], None]) -> None:
    """Generate answers to validation rows with both models, and score them."""
    validation, texts, config = _require_validation(inputs), inputs.prepared.validation_texts, inputs.config
    if texts is None:
        raise ValueError("the texts of the validation rows were not kept")
    rows, frame = select_rows(validation, texts, inputs.loaded_model.tokenizer, config.evaluation.max_samples)
    answers = RowAnswers.from_rows(rows, frame, config)
    _generate_with_both(inputs, answers, heartbeat)
    results.row_answers = answers
    measures, results.confusion = results.scorer.measure(answers)
    results.missing += results.scorer.list_problems(answers)
    results.measures += measures


def _answer_sample_prompts(inputs: EvaluationInput, results: EvaluationResults, heartbeat: Callable[[], None]) -> None:
    """Generate answers to `evaluation.samplePrompts` with both models."""
    requested, rows = inputs.config.evaluation.sample_prompts, results.row_answers
    answers = SamplePromptAnswers.encode(
        requested,
        inputs.loaded_model,
        rows.max_new_tokens if rows else choose_new_tokens(inputs.config, 0),
        rows.frame if rows else TemplateFrame(),
        inputs.prepared.template_date,
    )
    if answers.dropped:
        positions = get_max_positions(inputs.loaded_model.model.get_base_model().config)
        results.missing.append(
            f"sample prompts: {answers.dropped} of {len(requested)} exceed the {positions} positions of the model"
        )
    _generate_with_both(inputs, answers, heartbeat)
    results.prompt_answers = answers


def _generate_with_both(inputs: EvaluationInput, answers: PromptAnswers, heartbeat: Callable[[], None]) -> None:
    """Add the answers of the base model and of the tuned model."""
    loaded = inputs.loaded_model
    base, tuned = measure_base_and_tuned(loaded.model, lambda: answers.generate(loaded, heartbeat))
    answers.by_model |= {BASE: base, TUNED: tuned}


def _measure_baseline(
    inputs: EvaluationInput, name: str, results: EvaluationResults, heartbeat: Callable[[], None]
) -> None:
    """Measure the loss and the answers of the model with another adapter, which is active."""
    _compare_losses(inputs, name, results, heartbeat)
    for answers in (results.row_answers, results.prompt_answers):
        if answers:
            answers.by_model[name] = answers.generate(inputs.loaded_model, heartbeat)
    if results.row_answers:
        results.add_comparisons(name, results.scorer.measure(results.row_answers, name)[0])
    if results.test:
        results.test.measure_baseline(name)


def _compare_losses(
    inputs: EvaluationInput, name: str, results: EvaluationResults, heartbeat: Callable[[], None]
) -> None:
    """Measure the loss of the validation rows, unless it could not be measured with the other models."""
    if results.losses is None:
        return
    model, rows = inputs.loaded_model.model, _require_validation(inputs)
    losses = compute_dataset_losses(model, rows, heartbeat, inputs.max_batch_tokens)
    if not all(map(math.isfinite, losses.sums)):
        raise ArithmeticError("the loss of a validation row is not finite")
    results.losses.sums[name] = losses.sums
    results.add_comparisons(name, [baselines.compare_eval_loss(results.losses, name)])
    with results.section(f"perplexity of baseline {name}"):
        results.add_comparisons(name, [baselines.compare_perplexity(results.losses, name)])


def _measure_bias(
    inputs: EvaluationInput, settings: BiasEvaluation, results: EvaluationResults, heartbeat: Callable[[], None]
) -> None:
    loaded = inputs.loaded_model
    scorer = BiasScorer(loaded.model, loaded.tokenizer, settings, heartbeat, inputs.max_batch_tokens)
    swappable_rows = inputs.prepared.validation if get_method(inputs.config).uses_token_loss else None
    results.bias = scorer.measure_bias(
        inputs.sentence_pairs or load_builtin_pairs(), inputs.prepared.dataset, swappable_rows
    )
    if not results.bias.findings:  # zero flags would be wrong if nothing was compared
        results.missing.append("biasFlags: there was too little to compare")
        return
    flag_count = sum(finding.flagged for finding in results.bias.findings)
    flag_estimate = Estimate(value=flag_count, samples=len(results.bias.findings))
    results.measures.append(Measure(name="biasFlags", higher_is_better=False, tuned=flag_estimate))


def _require_validation(inputs: EvaluationInput) -> datasets.Dataset:
    if inputs.prepared.validation is None:
        raise ValueError("there is no validation data")
    return inputs.prepared.validation


def _build_report(inputs: EvaluationInput, results: EvaluationResults) -> EvaluationReport:
    train_result, settings = inputs.train_result, inputs.config.evaluation
    training_losses = downsample_points(
        [LossPoint(step=step, loss=loss) for step, loss in train_result.losses if math.isfinite(loss)]
    )
    validation_losses = [
        LossPoint(step=eval_result.step, loss=eval_result.loss)
        for eval_result in train_result.eval_results
        if math.isfinite(eval_result.loss)
    ]
    verdict = OverfittingResult(verdict="unknown", message="Overfitting could not be judged.")
    with results.section("overfitting"):
        verdict = _judge_overfitting(inputs, results, training_losses, validation_losses)
    fold_losses = train_result.fold_losses
    cross_validation = CrossValidationResult.from_losses(fold_losses) if fold_losses else None
    test_measures = results.test.measures if results.test else []
    gated_measures = [*results.measures, *test_measures, *build_fold_measures(cross_validation)]
    return EvaluationReport(
        task=settings.task,
        measures=results.measures,
        test_measures=test_measures or None,
        confusion=results.confusion,
        samples=list(_build_samples(results)),
        rows=_build_row_scores(inputs.prepared, results),
        training_losses=training_losses,
        validation_losses=downsample_points(validation_losses),
        rewards=downsample_points(train_result.rewards, value="reward"),
        overfitting=verdict,
        forgetting=results.forgetting,
        bias=results.bias,
        cross_validation=cross_validation,
        gate=gate.check_gate(settings.gate, gated_measures),
        examples=list(inputs.prepared.rejected_examples),
        unused_columns=dict(inputs.prepared.unused_columns),
        endpoints=results.scorer.describe_endpoints(),
        lengths=list(inputs.prepared.length_histogram),
        energy=train_result.energy,
        preflight=list(train_result.preflight),
        max_new_tokens=results.row_answers.max_new_tokens if results.row_answers else None,
        missing=results.missing,
    )


def _build_samples(results: EvaluationResults) -> Iterator[Sample]:
    if results.prompt_answers:
        yield from results.prompt_answers.build_samples()
    if results.row_answers:
        yield from results.row_answers.build_samples(_MAX_SHOWN_ROWS)


def _build_row_scores(prepared: PreparedData, results: EvaluationResults) -> list[RowScores]:
    scores: list[RowScores] = []
    if prepared.validation_digests is not None:
        with results.section("scores of rows"):
            answers, digests = results.row_answers, prepared.validation_digests
            answer_scores = results.scorer.score_rows(answers) if answers else {}
            scores = row_scores.build_row_scores(answers, answer_scores, results.losses, digests)
    return scores


def _judge_overfitting(
    inputs: EvaluationInput, results: EvaluationResults, training: Sequence[LossPoint], validation: Sequence[LossPoint]
) -> OverfittingResult:
    """Judge the published adapter. With early stopping, the steps after the best evaluation were discarded."""
    final_loss = next((measure for measure in results.measures if measure.name == "evalLoss"), None)
    best = early_stopping.find_best(inputs.train_result.eval_results)
    kept = validation
    if inputs.config.training.early_stopping and best is not None:
        kept = [point for point in validation if point.step <= best.step]
    verdict = overfitting.judge_overfitting(
        training, kept, results.training_loss, final_loss, inputs.train_result.row_losses
    )
    if len(kept) == len(validation):
        return verdict
    selection = messages.describe_selected_step(kept[-1])
    if verdict.best_step != kept[-1].step:  # the base model has a lower loss
        return verdict.model_copy(update={"message": f"{selection} {verdict.message}"})
    sentences = [selection, *([] if verdict.gap is None else [messages.describe_gap(verdict.gap)])]
    return verdict.model_copy(update={"verdict": "none", "message": " ".join(sentences)})
