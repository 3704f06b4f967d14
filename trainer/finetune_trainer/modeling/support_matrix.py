"""What was measured to work for each model family with the pinned libraries, and the refusal of what does not.

`make test-matrix` measures it and writes `support_matrix.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from finetune_trainer.contract import ModelSource, Reason, TrainerConfig
from finetune_trainer.errors import TrainerError

MATRIX_PATH = Path(__file__).with_suffix(".json")
YES, NOT_MEASURED = "yes", "not measured"
NO_PREFIX = "no: "
COLUMNS = ("loads", "sft", "dpo", "evaluates", "packs", "nf4", "int8", "merges", "exports", "unsloth")
_DEFAULT_MIN_QUANTIZED_FRACTION = ModelSource.model_fields["min_quantized_fraction"].default


@cache
def load_families() -> Mapping[str, Mapping[str, str]]:
    """Return the cells of each model family, by column: `yes`, `not measured`, or `no: ` with the reason."""
    families: dict[str, dict[str, str]] = json.loads(MATRIX_PATH.read_bytes())["families"]
    return families


def check_support(config: TrainerConfig, model_type: str) -> None:
    """Raise `MODEL_UNSUPPORTED` if a step of every run is known not to work for this family, and `CONFIG_INVALID` for
    such an option that the config asks for.

    A family that was not measured passes: the preflight checks decide.
    """
    for column in _list_needed_steps(config):
        reason = find_problem(model_type, column)
        if reason:
            message = f"the model family {model_type} is not supported: {reason}; use a base model of another family"
            raise TrainerError(Reason.MODEL_UNSUPPORTED, message)
    for column, advice in _list_requested_options(config).items():
        reason = find_problem(model_type, column)
        if reason:
            message = f"the model family {model_type} does not support this config: {reason}"
            raise TrainerError(Reason.CONFIG_INVALID, message if advice in message else f"{message}; {advice}")


def find_problem(model_type: str, column: str) -> str | None:
    """Return why an option does not work for a family, or None if it works or was not measured."""
    return load_families().get(model_type, {}).get(column, "").partition(NO_PREFIX)[2] or None


def _list_needed_steps(config: TrainerConfig) -> list[str]:
    """Return the columns that no setting avoids. The column of dpo is an option: the method can be changed."""
    return ["loads", *(["sft"] if config.training.method == "sft" else []), "evaluates", "exports"]


def _list_requested_options(config: TrainerConfig) -> dict[str, str]:
    """Return the columns of the options that the config asks for, with what to change if they do not work."""
    training, quantization = config.training, config.model.quantization
    # A user who accepts that a smaller fraction of the weights is quantized decides by the fraction of this model.
    checks_quantization = config.model.min_quantized_fraction >= _DEFAULT_MIN_QUANTIZED_FRACTION
    options = {
        "packs": (training.packing, "set training.packing to false"),
        "dpo": (training.method == "dpo", "use training.method sft, or a base model of another family"),
        "nf4": (quantization == "nf4" and checks_quantization, "set model.quantization to none"),
        "int8": (quantization == "int8" and checks_quantization, "set model.quantization to none"),
        "merges": (config.output.merged, "set output.merged to false"),
        "unsloth": (training.backend == "unsloth", "set training.backend to transformers"),
    }
    return {column: advice for column, (is_requested, advice) in options.items() if is_requested}
