"""Runs all checks before the first step. Imports torch, so import this module only after the backend."""

from __future__ import annotations

import logging
from collections.abc import Callable
from statistics import fmean
from typing import TYPE_CHECKING

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
from finetune_trainer.training.preflight.sample import Sample, build_sample, evaluation_mode
from finetune_trainer.training.preflight.sizes import check_sizes
from finetune_trainer.training.preflight.step import StepCheck
from finetune_trainer.training.state import TrainerInputs

if TYPE_CHECKING:
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

log = logging.getLogger(__name__)

_LOG_LEVELS = {"passed": logging.INFO, "warning": logging.WARNING}


def run_preflight(
    trainer: TokenizedTrainer, inputs: TrainerInputs, heartbeat: Callable[[], None]
) -> list[PreflightFinding]:
    """Run all checks that apply to the settings. All ranks must call it.

    Raises `MODEL_UNSUPPORTED`, or `CONFIG_INVALID` for a setting that the model does not support.
    """
    findings = [
        *check_sizes(inputs),
        *check_batches(inputs),
        *check_answers(inputs),
        *check_end_of_turn(inputs),
        *check_quantization_coverage(inputs),
        check_trained_adapter_keys(trainer),
        *_check_model(build_sample(trainer, inputs, heartbeat)),
    ]
    for finding in findings:
        log.log(_LOG_LEVELS[finding.status], "preflight: %s", finding.message)
    return findings


def _check_model(sample: Sample) -> list[PreflightFinding]:
    """Check the forward pass, the packing, the loss and the gradients of the model on a few rows."""
    with evaluation_mode(sample.trainer):
        adapter = check_adapter_reload(sample)
        causality = CausalityCheck(sample).run()
        packing = PackingCheck(sample).run() if sample.config.training.packing else []
        uses_token_loss = get_method(sample.config).uses_token_loss
        findings = LossCheck(sample).run() if uses_token_loss else PreferenceLossCheck(sample).run()
        if not findings:
            return [adapter, *causality, *packing]
        row_loss = findings[0].value if uses_token_loss else None
        if row_loss is None:
            row_loss = fmean(sample.compute_loss([row]) for row in sample.rows)
        return [adapter, *causality, *packing, *findings, *StepCheck(sample, row_loss).run()]
