"""Checks that an adapter fits the class that servers load for its base model. Heavy imports happen inside functions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.model_config import build_meta_model, load_model_config
from finetune_trainer.records.evaluation import PreflightFinding

if TYPE_CHECKING:
    from peft import PeftModel

Shapes = dict[str, tuple[int, ...]]
"""Shapes of weights by name."""


def check_adapter_keys(model: PeftModel, model_dir: Path) -> PreflightFinding:
    """Compare the weights of the adapter with those that plain PEFT creates, with the same settings, for the class that
    config.json in `model_dir` names.

    A server ignores weights with other names, so that the adapter would have no effect there. Raises
    `MODEL_UNSUPPORTED` if names or shapes differ.
    """
    trained = list_adapter_shapes(model)
    expected, class_name = _list_expected_shapes(model, model_dir)
    misplaced = sorted(name for name in trained if trained[name] != expected.get(name))
    missing = sorted(expected.keys() - trained.keys())
    if misplaced or missing:
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"{len(misplaced)} of {len(trained)} weights of the adapter do not fit {class_name}, the class that "
            f"servers load for this base model, and {len(missing)} of its weights are not in the adapter, such as "
            f"{(misplaced + missing)[0]}; use training.backend transformers, or name fewer training.lora.targetModules",
        )
    message = f"all {len(trained)} weights of the adapter fit {class_name}, the class that config.json names"
    named = (load_model_config(model_dir).architectures or [class_name])[0]
    if named != class_name:
        message = (
            f"config.json names {named}, which is no class of transformers for its model_type; the adapter fits "
            f"{class_name}"
        )
    return PreflightFinding(check="adapterKeys", status="passed" if named == class_name else "warning", message=message)


def list_adapter_shapes(model: PeftModel) -> Shapes:
    """Return the shapes of the weights of the adapter, by the names that they have in its file."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _list_expected_shapes(model: PeftModel, model_dir: Path) -> tuple[Shapes, str]:
    """Return the shapes of a new adapter, and the name of the class of the base model that it is for."""
    import torch
    from peft import get_peft_model

    meta_model = build_meta_model(load_model_config(model_dir))
    settings = copy.deepcopy(model.peft_config["default"])
    settings.base_model_name_or_path = None  # PEFT warns if it differs from that of the model, which has none
    try:
        with torch.device("meta"):
            adapted = get_peft_model(meta_model, settings)
    except ValueError:  # it has no module with such a name
        return {}, type(meta_model).__name__
    return list_adapter_shapes(adapted), type(meta_model).__name__
