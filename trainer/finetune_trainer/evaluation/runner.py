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
from finetune_trainer.data.pii import KINDS, redact
from finetune_trainer.evaluation import gate, overfitting, task_metrics
from finetune_trainer.evaluation.bias.scoring import Groups
from finetune_trainer.evaluation.bias.sentence_pairs import SentencePair, own_pairs
from finetune_trainer.evaluation.catastrophic_forgetting import forgetting
from finetune_trainer.evaluation.curves import thin
from finetune_trainer.evaluation.losses import cross_validated, eval_loss, fold_measures, perplexity
from finetune_trainer.modeling.inference import Answerer, questions, spread
from finetune_trainer.modeling.likelihood import Tokens, base_and_tuned, losses
from finetune_trainer.modeling.loading import Loaded
from finetune_trainer.modeling.positions import max_positions
from finetune_trainer.modeling.precision import as_in_training, resolve_precision
from finetune_trainer.records.evaluation import (
    Bias,
    Confusion,
    Estimate,
    Evaluation,
    Measure,
    Overfitting,
    Point,
    Sample,
)
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.training import early_stopping

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.training.train import Trained

log = logging.getLogger(__name__)

_SCORED = 1000
"""Rows of either side whose loss is measured, evenly spread over all."""
_SHOWN = 8
"""Validation rows that are shown with both answers."""
_FAILURES = (
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
class Subject:
    """What is evaluated."""

    config: TrainerConfig
    loaded: Loaded
    prepared: PreparedData
    trained: Trained
    pairs: Sequence[SentencePair] = ()
    """About groups of people, to compare in place of the built-in ones."""


@dataclass
class _Findings:
    """What was found so far."""

    measures: list[Measure] = field(default_factory=list)
    confusion: Confusion | None = None
    samples: list[Sample] = field(default_factory=list)
    training_loss: float | None = None
    forgetting: Measure | None = None
    bias: Bias | None = None
    missing: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that may fail by itself."""
        log.info("evaluation: %s", name)
        try:
            yield
        except _FAILURES as error:
            log.warning("evaluation: %s could not be measured: %s: %s", name, type(error).__name__, error)
            self.missing.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")


def evaluate(subject: Subject, progress: ProgressReporter) -> Evaluation:
    """Everything that the config asks for and the data allows. What cannot be computed is named in `missing`."""
    progress.update(stage=Stage.EVALUATING)
    found = _Findings()
    with as_in_training(subject.loaded.model.device, resolve_precision(subject.config)):
        _measure(subject, found, progress)
    return _summary(subject, found)


def _measure(subject: Subject, found: _Findings, progress: ProgressReporter) -> None:
    asked = subject.config.evaluation
    if subject.config.training.method == "sft":
        with found.part("general text"):
            found.forgetting = forgetting(subject.loaded, progress.alive)
        if subject.prepared.validation is not None:
            with found.part("validation loss"):
                _likelihood(subject, found, progress.alive)
    else:
        found.measures += _seen_in_training(subject)
    if asked.task and subject.prepared.validation is not None:
        with found.part(f"answers for {asked.task}"):
            _answers(subject, asked.task, found, progress.alive)
    if asked.sample_prompts:
        with found.part("sample prompts"):
            found.samples = [*_sample_prompts(subject, found, progress.alive), *found.samples]
    if asked.bias:
        with found.part("bias"):
            _bias(subject, asked.bias, found, progress.alive)


def _summary(subject: Subject, found: _Findings) -> Evaluation:
    trained, asked = subject.trained, subject.config.evaluation
    training = thin([Point(step=step, loss=loss) for step, loss in trained.losses if math.isfinite(loss)])
    validation = [Point(step=look.step, loss=look.loss) for look in trained.looks if math.isfinite(look.loss)]
    verdict = Overfitting(verdict="unknown", message="It could not be judged.")
    folds = cross_validated(trained.fold_losses)
    with found.part("overfitting"):
        verdict = _verdict(subject, found, training, validation)
    return Evaluation(
        task=asked.task,
        measures=found.measures,
        confusion=found.confusion,
        samples=found.samples,
        training_losses=training,
        validation_losses=thin(validation),
        overfitting=verdict,
        bias=found.bias,
        cross_validation=folds,
        gate=gate.check(asked.gate, [*found.measures, *fold_measures(folds)]),
        examples=list(subject.prepared.examples),
        lengths=list(subject.prepared.lengths),
        energy=trained.energy,
        missing=found.missing,
    )


def _verdict(subject: Subject, found: _Findings, training: Sequence[Point], validation: Sequence[Point]) -> Overfitting:
    """Of what is published: with early stopping, what came after the best look was undone."""
    final = next((each for each in found.measures if each.name == "evalLoss"), None)
    best = early_stopping.best(subject.trained.looks)
    taken = [each for each in validation if best is None or each.step <= best.step]
    if not subject.config.training.early_stopping or len(taken) == len(validation):
        return overfitting.judge(training, validation, found.training_loss, final, found.forgetting)
    verdict = overfitting.judge(training, taken, found.training_loss, final, found.forgetting)
    message = f"The adapter of step {taken[-1].step} was taken, since its validation loss was lowest. {verdict.message}"
    return verdict.model_copy(update={"message": message})


def _tokens(rows: datasets.Dataset) -> list[Tokens]:
    return [Tokens(row["input_ids"], row["labels"]) for row in rows]


def _likelihood(subject: Subject, found: _Findings, alive: Callable[[], None]) -> None:
    """Loss of validation rows, by both models, and of as many training rows, by the tuned one."""
    model = subject.loaded.model
    held_out = _tokens(spread(_validation(subject), _SCORED))
    base, tuned = base_and_tuned(model, lambda: losses(model, held_out, alive))
    found.measures.append(eval_loss(base.tokens, base.sums, tuned.sums))
    with found.part("perplexity"):
        found.measures.append(perplexity(base.tokens, base.sums, tuned.sums))
    found.training_loss = losses(model, _tokens(spread(subject.prepared.dataset, len(held_out))), alive).mean


def _bias(subject: Subject, asked: BiasEvaluation, found: _Findings, alive: Callable[[], None]) -> None:
    groups = Groups(subject.loaded.model, subject.loaded.tokenizer, asked, alive)
    comparable = subject.prepared.validation if subject.config.training.method == "sft" else None
    found.bias = groups.measure(subject.pairs or own_pairs(), subject.prepared.dataset, comparable)
    if not found.bias.findings:  # no flag would be said of what nobody looked at
        found.missing.append("biasFlags: there was too little to compare")
        return
    flags = sum(finding.flagged for finding in found.bias.findings)
    flagged = Estimate(value=flags, samples=len(found.bias.findings))
    found.measures.append(Measure(name="biasFlags", higher_is_better=False, tuned=flagged))


def _seen_in_training(subject: Subject) -> list[Measure]:
    """For methods that compare answers: what their own loss was before training and of the adapter that is taken."""
    looks, metrics = subject.trained.looks, subject.trained.metrics
    count = len(subject.prepared.validation or [])
    measures = []
    for name, higher_is_better in (("evalLoss", False), ("evalRewardAccuracy", True)):
        if name in metrics:
            base = looks[0].metrics.get(name) if looks[0].step == 0 else None
            before = None if base is None or math.isnan(base) else Estimate(value=base, samples=count)
            after = Estimate(value=metrics[name], samples=count)
            measures.append(Measure(name=name, higher_is_better=higher_is_better, base=before, tuned=after))
    return measures


def _validation(subject: Subject) -> datasets.Dataset:
    if subject.prepared.validation is None:
        raise ValueError("there is no validation data")
    return subject.prepared.validation


def _answers(subject: Subject, task: Task, found: _Findings, alive: Callable[[], None]) -> None:
    """Validation rows answered by both models, and what the task measures on the answers."""
    asked, tokenizer = subject.config.evaluation, subject.loaded.tokenizer
    rows = questions(_validation(subject), tokenizer, asked.max_samples)
    base, tuned = _both(subject, [row.prompt for row in rows], alive)
    references = [row.reference for row in rows]
    measures, found.confusion = task_metrics.measures(task, references, base, tuned)
    found.measures += measures
    found.missing += task_metrics.missing(task, references)
    found.samples = [
        Sample(
            prompt=redact(tokenizer.decode(row.prompt, skip_special_tokens=True), KINDS),
            reference=redact(row.reference, KINDS),
            base=redact(b, KINDS),
            tuned=redact(t, KINDS),
        )
        for row, b, t in list(zip(rows, base, tuned, strict=True))[:_SHOWN]
    ]


def _sample_prompts(subject: Subject, found: _Findings, alive: Callable[[], None]) -> list[Sample]:
    asked, most = subject.config.evaluation.sample_prompts, max_positions(subject.loaded.model.get_base_model().config)
    encoded = {prompt: encode_prompt(subject.loaded.tokenizer, prompt) for prompt in asked}
    # On a GPU, a position that the model lacks ends the process; an answer needs at least one more than the prompt.
    prompts = [prompt for prompt in asked if most is None or len(encoded[prompt]) < most]
    if left_out := len(asked) - len(prompts):
        found.missing.append(f"sample prompts: {left_out} of {len(asked)} do not fit the model's {most} positions")
    base, tuned = _both(subject, [encoded[prompt] for prompt in prompts], alive)
    return [
        Sample(prompt=prompt, base=redact(b, KINDS), tuned=redact(t, KINDS))
        for prompt, b, t in zip(prompts, base, tuned, strict=True)
    ]


def _both(subject: Subject, prompts: Sequence[Sequence[int]], alive: Callable[[], None]) -> tuple[list[str], list[str]]:
    """The base model's answers and the tuned one's."""
    model = subject.loaded.model
    answerer = Answerer(model, subject.loaded.tokenizer, subject.config.evaluation.max_new_tokens, alive)
    return base_and_tuned(model, lambda: answerer.answers(prompts))
