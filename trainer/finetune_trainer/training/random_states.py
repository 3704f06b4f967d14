"""The random states in a checkpoint, which dropout continues from. Imports transformers, so import this module only
after the backend."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from transformers import set_seed

from finetune_trainer.distributed import topology

log = logging.getLogger(__name__)


def fits_rank_count(checkpoint: Path) -> bool:
    """Return whether the checkpoint has one random state for each rank of this run."""
    return _count_states(checkpoint) == topology.world_size()


def seed_rank(checkpoint: Path, seed: int) -> None:
    """Seed the random generators of this rank, because the checkpoint was saved by another number of ranks.

    The seed depends on the step and the rank: with that of the start, dropout would repeat its masks.
    """
    text = f"{seed} {checkpoint.name} {topology.rank()}"
    set_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))
    if topology.is_rank_zero():
        log.info(
            "checkpoint: saved by %d ranks, resumed by %d; dropout continues with other random numbers",
            _count_states(checkpoint),
            topology.world_size(),
        )


def _count_states(checkpoint: Path) -> int:
    return len([*checkpoint.glob("rng_state*.pth")])
