"""Runs all checks before the first step. Imports torch, so import this module only after the backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from finetune_trainer.modeling.row_sharing import describe_row_sharing
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.preflight.adapter_keys import check_trained_adapter_keys
from finetune_trainer.training.preflight.adapter_reload import check_adapter_reload
from finetune_trainer.training.preflight.answers import check_answers
from finetune_trainer.training.preflight.batches import check_batches
from finetune_trainer.training.preflight.causality import CausalityCheck
from finetune_trainer.training.preflight.end_of_turn import check_end_of_turn
from finetune_trainer.training.preflight.loss import LossCheck
from finetune_trainer.training.preflight.packing import PackingCheck
from finetune_trainer.training.preflight.preferences import PreferenceLossCheck
from finetune_trainer.training.preflight.quantization import check_quantization_coverage
from finetune_trainer.training.preflight.rollouts import check_rollouts
from finetune_trainer.training.preflight.sample import Sample, build_sample, evaluation_mode
from finetune_trainer.training.preflight.sizes import check_sizes
from finetune_trainer.training.preflight.step import StepCheck
from finetune_trainer.training.state import TrainerInputs, discard_findings

if TYPE_CHECKING:
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

log = logging.getLogger(__name__)

_LOG_LEVELS = {"passed": logging.INFO, "warning": logging.WARNING}


def run_preflight(
    trainer: TokenizedTrainer,
    inputs: TrainerInputs,
    heartbeat: Callable[[], None],
    record: Callable[[Sequence[PreflightFinding]], None] = discard_findings,
) -> list[PreflightFinding]:
    """Run all checks that apply to the settings. All ranks must call it.

    After each check, `record` gets the findings so far, which are also those of a run that a later check ends. Raises
    `MODEL_UNSUPPORTED`, or `CONFIG_INVALID` for a setting that the model does not support.
    """
    findings: list[PreflightFinding] = []
    for finding in _run_checks(trainer, inputs, heartbeat):
        log.log(_LOG_LEVELS[finding.status], "preflight: %s", finding.message)
        findings.append(finding)
        record(findings)
    return findings


def _run_checks(
    trainer: TokenizedTrainer, inputs: TrainerInputs, heartbeat: Callable[[], None]
) -> Iterator[PreflightFinding]:
    yield from check_sizes(inputs)
    yield from check_batches(inputs)
    yield from check_answers(inputs)
    yield from check_end_of_turn(inputs)
    yield from check_quantization_coverage(inputs)
    yield check_trained_adapter_keys(trainer)
    if inputs.config.training.is_policy_method:
        yield from check_rollouts(trainer, inputs)
        return
    yield from _check_model(build_sample(trainer, inputs, heartbeat))


def _check_model(sample: Sample) -> Iterator[PreflightFinding]:
    """Check the forward pass, the packing, the loss and the gradients of the model on a few rows."""
    with evaluation_mode(sample.trainer):
        yield check_adapter_reload(sample)
        yield from CausalityCheck(sample).run()
        sharing = describe_row_sharing(sample.config.training)
        if sharing:
            yield from PackingCheck(sample, sharing).run()
        uses_token_loss = get_method(sample.config).uses_token_loss
        findings = LossCheck(sample).run() if uses_token_loss else PreferenceLossCheck(sample).run()
        if not findings:
            return
        yield from findings
        row_loss = findings[0].value if uses_token_loss else None
        if row_loss is None:
            row_loss = fmean(sample.compute_loss([row]) for row in sample.rows)
        yield from StepCheck(sample, row_loss).run()
