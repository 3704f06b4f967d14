"""What was measured to work for each model family with the pinned libraries, and the refusal of what does not.

`make test-matrix` measures it and writes `support_matrix.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError

MATRIX_PATH = Path(__file__).with_suffix(".json")
YES, NOT_MEASURED = "yes", "not measured"
NO_PREFIX = "no: "
COLUMNS = ("loads", "sft", "dpo", "evaluates", "packs", "nf4", "int8", "merges", "exports", "unsloth")
_DEFAULT_MIN_QUANTIZED_FRACTION = 0.9


@cache
def load_families() -> Mapping[str, Mapping[str, str]]:
    """Return the cells of each model family, by column: `yes`, `not measured`, or `no: ` with the reason."""
    families: dict[str, dict[str, str]] = json.loads(MATRIX_PATH.read_bytes())["families"]
    return families
