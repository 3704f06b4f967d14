"""What was measured to work for each model family with the pinned libraries, and the refusal of what does not.

`make test-matrix` measures it and writes `support_matrix.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.row_sharing import describe_row_sharing

MATRIX_PATH = Path(__file__).with_suffix(".json")
YES, NOT_MEASURED = "yes", "not measured"
NO_PREFIX = "no: "
PARTIAL_PREFIX = "partial: "
"""Begins the cell of an option that works for a part of the weights. Which part depends on the config of the model."""
VARIANT_SEPARATOR = ":"
"""Separates the `model_type` from the name of a variant, such as `granitemoehybrid:attention`. Variants of a family
differ in their config, for example in their types of layers."""
COLUMNS = ("loads", "sft", "dpo", "evaluates", "packs", "nf4", "int8", "merges", "exports", "unsloth", "shards")

_MEASURED_SETTINGS = {"packs": "training.packing"}
"""Columns that several settings ask for, with the setting that begins the reasons in their cells."""


@cache
def load_families() -> Mapping[str, Mapping[str, str]]:
    """Return the cells of each variant of a model family, by column: `yes`, `not measured`, or `no: ` or `partial: `
    with the reason."""
    families: dict[str, dict[str, str]] = json.loads(MATRIX_PATH.read_bytes())["families"]
    return families


def check_support(config: TrainerConfig, model_type: str) -> None:
    """Raise `MODEL_UNSUPPORTED` if a step of every run is known not to work for this family, and `CONFIG_INVALID` for
    such an option that the config asks for.

    A family that was not measured passes, and so does an option that works for a part of the weights: the checks of
    this model decide. They would not notice weights that were sharded wrongly, so sharding must have been measured.
    """
    for column in _list_needed_steps(config):
        if problem := find_problem(model_type, column):
            message = f"the model family {model_type} is not supported{_attribute(problem)}; use one of another family"
            raise TrainerError(Reason.MODEL_UNSUPPORTED, message)
    for column, (setting, advice) in _list_requested_options(config).items():
        if problem := find_problem(model_type, column):
            problem = problem.removeprefix(f"{_MEASURED_SETTINGS.get(column, setting)}: ")
            message = f"the model family {model_type} does not support {setting}{_attribute(problem)}; {advice}"
            raise TrainerError(Reason.CONFIG_INVALID, message)
    if topology.is_sharded() and not is_measured(model_type, "shards"):
        message = (
            f"the model family {model_type} was not measured with compute.sharding full, where wrong weights are not "
            "noticed; set it to none"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)


def is_measured(model_type: str, column: str) -> bool:
    """Return whether an option was measured for a variant of a family."""
    families = load_families().items()
    return any(
        cells[column] != NOT_MEASURED for name, cells in families if name.partition(VARIANT_SEPARATOR)[0] == model_type
    )


def find_problem(model_type: str, column: str) -> str | None:
    """Return why an option does not work for a family, or None if it works for a variant or was not measured."""
    cells = [
        cells[column]
        for name, cells in load_families().items()
        if name.partition(VARIANT_SEPARATOR)[0] == model_type and cells[column] != NOT_MEASURED
    ]
    if not cells or not all(cell.startswith(NO_PREFIX) for cell in cells):
        return None
    return cells[0].removeprefix(NO_PREFIX)


def _attribute(problem: str) -> str:
    """Return a problem without its advice, with the model that it was measured on: its numbers are not the user's."""
    return f", as measured on a small model of the family ({problem.partition(';')[0]})"


def _list_needed_steps(config: TrainerConfig) -> list[str]:
    """Return the columns that no setting avoids. The column of dpo is an option: the method can be changed."""
    return ["loads", *(["sft"] if config.training.method == "sft" else []), "evaluates", "exports"]


def _list_requested_options(config: TrainerConfig) -> dict[str, tuple[str, str]]:
    """Return the columns of the options that the config asks for, with the setting and what to change."""
    training, quantization, sharing = config.training, config.model.quantization, describe_row_sharing(config.training)
    packs = {"packs": (sharing.setting, f"set it to {sharing.alternatives}")} if sharing else {}
    options = {
        "dpo": (training.method == "dpo", "training.method dpo", "use sft, or a base model of another family"),
        quantization: (quantization != "none", f"model.quantization {quantization}", "set it to none"),
        "merges": (config.output.merged, "output.merged", "set it to false"),
        "shards": (topology.is_sharded(), "compute.sharding full", "set it to none"),
        "unsloth": (training.backend == "unsloth", "training.backend unsloth", "set it to transformers"),
    }
    requested = {column: (setting, advice) for column, (is_set, setting, advice) in options.items() if is_set}
    return packs | requested
