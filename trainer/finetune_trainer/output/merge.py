"""The base model with the adapter worked into its weights, for servers that load no adapters."""

from __future__ import annotations

import logging
from pathlib import Path

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.model import Loaded
from finetune_trainer.models.precision import resolve_precision
from finetune_trainer.output.export import probe

log = logging.getLogger(__name__)

MERGED = "merged"
"""The folder below the adapter's."""
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.1}
"""Largest difference of a logit, by precision: the sum of weight and update is rounded to the weight's own format."""


def merge(config: TrainerConfig, loaded: Loaded, target: Path) -> None:
    """Write the merged model into `<target>/merged`, after the adapter itself was exported: the model in memory is
    changed for good. Raises `INTERNAL_ERROR` if it answers differently than base and adapter did."""
    precision = resolve_precision(config)
    before = probe(loaded.model, precision)
    merged = loaded.model.merge_and_unload(safe_merge=True)
    difference = float((before - probe(merged, precision)).abs().max())
    if not difference <= _TOLERANCE[precision]:
        raise TrainerError(
            Reason.INTERNAL_ERROR,
            f"the merged model answers differently than its adapter: a logit is off by {difference:g}",
        )
    log.info("the merged model's logits differ from the adapter's by at most %g", difference)
    merged.save_pretrained(str(target / MERGED))
    loaded.tokenizer.save_pretrained(str(target / MERGED))
