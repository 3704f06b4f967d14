"""Find out what the tuned model can do beside its base. Imports torch, so import this module only after the backend."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_trainer.contract import BiasEvaluation, Stage, Task, TrainerConfig
from finetune_trainer.data.loss_masking import encode_prompt
from finetune_trainer.data.pii import PII_KINDS, redact_pii
from finetune_trainer.evaluation import gate, overfitting, task_metrics
from finetune_trainer.evaluation.bias.scoring import BiasScorer
from finetune_trainer.evaluation.bias.sentence_pairs import SentencePair, load_builtin_pairs
from finetune_trainer.evaluation.catastrophic_forgetting import measure_forgetting
from finetune_trainer.evaluation.curves import downsample_points
from finetune_trainer.evaluation.losses import (
    build_fold_measures,
    measure_eval_loss,
    measure_perplexity,
)
from finetune_trainer.evaluation.prompts import extract_prompts, select_evenly
from finetune_trainer.modeling.generation import TextGenerator
from finetune_trainer.modeling.likelihood import LabeledTokens, compute_losses, measure_base_and_tuned
from finetune_trainer.modeling.loading import LoadedModel
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.modeling.precision import autocast_like_training, resolve_precision
from finetune_trainer.records.evaluation import (
    BiasResult,
    ConfusionMatrix,
    CrossValidationResult,
    Estimate,
    EvaluationReport,
    LossPoint,
    Measure,
    OverfittingResult,
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

_MAX_SCORED_ROWS = 1000
"""Rows of either side whose loss is measured, evenly spread over all."""
_MAX_SHOWN_ROWS = 8
"""Validation rows that are shown with both answers."""
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
"""What a measurement may end with. A finished training is published without it, and says so."""


@dataclass(frozen=True)
class EvaluationInput:
    """What is evaluated."""

    config: TrainerConfig
    loaded_model: LoadedModel
    prepared: PreparedData
    train_result: TrainResult
    sentence_pairs: Sequence[SentencePair] = ()
    """About groups of people, to compare in place of the built-in ones."""


@dataclass
class EvaluationResults:
    """What was found so far."""

    measures: list[Measure] = field(default_factory=list)
    confusion: ConfusionMatrix | None = None
    samples: list[Sample] = field(default_factory=list)
    training_loss: float | None = None
    forgetting: Measure | None = None
    bias: BiasResult | None = None
    missing: list[str] = field(default_factory=list)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """A part that may fail by itself."""
        log.info("evaluation: %s", name)
        try:
            yield
        except _MEASUREMENT_ERRORS as error:
            log.warning("evaluation: %s could not be measured: %s: %s", name, type(error).__name__, error)
            self.missing.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")


def evaluate(inputs: EvaluationInput, progress: ProgressReporter) -> EvaluationReport:
    """Everything that the config asks for and the data allows. What cannot be computed is named in `missing`."""
    progress.update(stage=Stage.EVALUATING)
    results = EvaluationResults()
    with autocast_like_training(inputs.loaded_model.model.device, resolve_precision(inputs.config)):
        _run_measurements(inputs, results, progress)
    return _build_report(inputs, results)


def _run_measurements(inputs: EvaluationInput, results: EvaluationResults, progress: ProgressReporter) -> None:
    settings = inputs.config.evaluation
    if get_method(inputs.config).uses_token_loss:
        with results.section("general text"):
            results.forgetting = measure_forgetting(inputs.loaded_model, progress.heartbeat)
        if inputs.prepared.validation is not None:
            with results.section("validation loss"):
                _measure_likelihood(inputs, results, progress.heartbeat)
    else:
        results.measures += _measures_from_training(inputs)
    if settings.task and inputs.prepared.validation is not None:
        with results.section(f"answers for {settings.task}"):
            _measure_answers(inputs, settings.task, results, progress.heartbeat)
    if settings.sample_prompts:
        with results.section("sample prompts"):
            results.samples = [*_generate_samples(inputs, results, progress.heartbeat), *results.samples]
    if settings.bias:
        with results.section("bias"):
            _measure_bias(inputs, settings.bias, results, progress.heartbeat)


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
    verdict = OverfittingResult(verdict="unknown", message="It could not be judged.")
    fold_losses = train_result.fold_losses
    cross_validation = CrossValidationResult.from_losses(fold_losses) if fold_losses else None
    with results.section("overfitting"):
        verdict = _judge_overfitting(inputs, results, training_losses, validation_losses)
    return EvaluationReport(
        task=settings.task,
        measures=results.measures,
        confusion=results.confusion,
        samples=results.samples,
        training_losses=training_losses,
        validation_losses=downsample_points(validation_losses),
        overfitting=verdict,
        bias=results.bias,
        cross_validation=cross_validation,
        gate=gate.check_gate(settings.gate, [*results.measures, *build_fold_measures(cross_validation)]),
        examples=list(inputs.prepared.rejected_examples),
        lengths=list(inputs.prepared.length_histogram),
        energy=train_result.energy,
        missing=results.missing,
    )


def _judge_overfitting(
    inputs: EvaluationInput, results: EvaluationResults, training: Sequence[LossPoint], validation: Sequence[LossPoint]
) -> OverfittingResult:
    """Of what is published: with early stopping, what came after the best look was undone."""
    final_loss = next((measure for measure in results.measures if measure.name == "evalLoss"), None)
    best = early_stopping.find_best(inputs.train_result.eval_results)
    until_best = [point for point in validation if best is None or point.step <= best.step]
    if not inputs.config.training.early_stopping or len(until_best) == len(validation):
        return overfitting.judge_overfitting(
            training, validation, results.training_loss, final_loss, results.forgetting
        )
    verdict = overfitting.judge_overfitting(training, until_best, results.training_loss, final_loss, results.forgetting)
    message = (
        f"The adapter of step {until_best[-1].step} was taken, since its validation loss was lowest. {verdict.message}"
    )
    return verdict.model_copy(update={"message": message})


def _to_labeled_tokens(rows: datasets.Dataset) -> list[LabeledTokens]:
    return [LabeledTokens(row["input_ids"], row["labels"]) for row in rows]


def _measure_likelihood(inputs: EvaluationInput, results: EvaluationResults, heartbeat: Callable[[], None]) -> None:
    """Loss of validation rows, by both models, and of as many training rows, by the tuned one."""
    model = inputs.loaded_model.model
    validation_rows = _to_labeled_tokens(select_evenly(_require_validation(inputs), _MAX_SCORED_ROWS))
    base, tuned = measure_base_and_tuned(model, lambda: compute_losses(model, validation_rows, heartbeat))
    results.measures.append(measure_eval_loss(base.token_counts, base.sums, tuned.sums))
    with results.section("perplexity"):
        results.measures.append(measure_perplexity(base.token_counts, base.sums, tuned.sums))
    results.training_loss = compute_losses(
        model, _to_labeled_tokens(select_evenly(inputs.prepared.dataset, len(validation_rows))), heartbeat
    ).mean


def _measure_bias(
    inputs: EvaluationInput, settings: BiasEvaluation, results: EvaluationResults, heartbeat: Callable[[], None]
) -> None:
    scorer = BiasScorer(inputs.loaded_model.model, inputs.loaded_model.tokenizer, settings, heartbeat)
    swappable_rows = inputs.prepared.validation if get_method(inputs.config).uses_token_loss else None
    results.bias = scorer.measure_bias(
        inputs.sentence_pairs or load_builtin_pairs(), inputs.prepared.dataset, swappable_rows
    )
    if not results.bias.findings:  # no flag would be said of what nobody looked at
        results.missing.append("biasFlags: there was too little to compare")
        return
    flag_count = sum(finding.flagged for finding in results.bias.findings)
    flag_estimate = Estimate(value=flag_count, samples=len(results.bias.findings))
    results.measures.append(Measure(name="biasFlags", higher_is_better=False, tuned=flag_estimate))


def _measures_from_training(inputs: EvaluationInput) -> list[Measure]:
    """For methods that compare answers: what their own loss was before training and of the adapter that is taken."""
    eval_results, metrics = inputs.train_result.eval_results, inputs.train_result.metrics
    count = len(inputs.prepared.validation or [])
    measures = []
    extra_metrics = get_method(inputs.config).extra_metrics
    for name, higher_is_better in (("evalLoss", False), *((name, True) for name in extra_metrics)):
        if name in metrics:
            base = eval_results[0].metrics.get(name) if eval_results[0].step == 0 else None
            base_estimate = None if base is None or math.isnan(base) else Estimate(value=base, samples=count)
            tuned_estimate = Estimate(value=metrics[name], samples=count)
            measures.append(
                Measure(name=name, higher_is_better=higher_is_better, base=base_estimate, tuned=tuned_estimate)
            )
    return measures


def _require_validation(inputs: EvaluationInput) -> datasets.Dataset:
    if inputs.prepared.validation is None:
        raise ValueError("there is no validation data")
    return inputs.prepared.validation


def _measure_answers(
    inputs: EvaluationInput, task: Task, results: EvaluationResults, heartbeat: Callable[[], None]
) -> None:
    """Validation rows answered by both models, and what the task measures on the answers."""
    settings, tokenizer = inputs.config.evaluation, inputs.loaded_model.tokenizer
    prompts = extract_prompts(_require_validation(inputs), tokenizer, settings.max_samples)
    base, tuned = _generate_both(inputs, [prompt.prompt for prompt in prompts], heartbeat)
    references = [prompt.reference for prompt in prompts]
    measures, results.confusion = task_metrics.measure_task(task, references, base, tuned)
    results.measures += measures
    results.missing += task_metrics.list_missing(task, references)
    results.samples = [
        Sample(
            prompt=redact_pii(tokenizer.decode(prompt.prompt, skip_special_tokens=True), PII_KINDS),
            reference=redact_pii(prompt.reference, PII_KINDS),
            base=redact_pii(base_answer, PII_KINDS),
            tuned=redact_pii(tuned_answer, PII_KINDS),
        )
        for prompt, base_answer, tuned_answer in list(zip(prompts, base, tuned, strict=True))[:_MAX_SHOWN_ROWS]
    ]


def _generate_samples(
    inputs: EvaluationInput, results: EvaluationResults, heartbeat: Callable[[], None]
) -> list[Sample]:
    requested, positions = (
        inputs.config.evaluation.sample_prompts,
        get_max_positions(inputs.loaded_model.model.get_base_model().config),
    )
    encoded = {prompt: encode_prompt(inputs.loaded_model.tokenizer, prompt) for prompt in requested}
    # On a GPU, a position that the model lacks ends the process; an answer needs at least one more than the prompt.
    prompts = [prompt for prompt in requested if positions is None or len(encoded[prompt]) < positions]
    if dropped := len(requested) - len(prompts):
        results.missing.append(
            f"sample prompts: {dropped} of {len(requested)} do not fit the model's {positions} positions"
        )
    base, tuned = _generate_both(inputs, [encoded[prompt] for prompt in prompts], heartbeat)
    return [
        Sample(prompt=prompt, base=redact_pii(base_answer, PII_KINDS), tuned=redact_pii(tuned_answer, PII_KINDS))
        for prompt, base_answer, tuned_answer in zip(prompts, base, tuned, strict=True)
    ]


def _generate_both(
    inputs: EvaluationInput, prompts: Sequence[Sequence[int]], heartbeat: Callable[[], None]
) -> tuple[list[str], list[str]]:
    """The base model's answers and the tuned one's."""
    model = inputs.loaded_model.model
    generator = TextGenerator(model, inputs.loaded_model.tokenizer, inputs.config.evaluation.max_new_tokens, heartbeat)
    return measure_base_and_tuned(model, lambda: generator.generate(prompts))
