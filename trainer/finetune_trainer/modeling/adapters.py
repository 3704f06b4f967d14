"""Checks and loads the existing adapter that a run continues to train. Heavy imports happen inside functions."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)


def check_adapter(config: TrainerConfig, folder: Path) -> None:
    """Raise `MODEL_INVALID` if it is not a LoRA adapter, and `CONFIG_INVALID` if it differs from `training.lora`."""
    settings = _read_settings(folder)
    if settings.get("peft_type") != "LORA":
        raise _invalid_adapter(f"peft_type is {settings.get('peft_type')}, expected LORA")
    lora = config.training.lora
    stored = {"rank": settings.get("r"), "alpha": settings.get("lora_alpha"), "variant": _get_variant(settings)}
    for name, expected in (("rank", lora.rank), ("alpha", lora.alpha), ("variant", lora.variant)):
        if stored[name] != expected:
            raise _mismatch_error(name, stored[name], expected)
    base_name = str(settings.get("base_model_name_or_path"))
    if base_name.rstrip("/") != config.model.uri.removeprefix("hf://").rstrip("/"):
        log.warning("model.adapterURI: the adapter names the base model %s, not %s", base_name, config.model.uri)


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Replace the weights of the new adapter by the stored ones. Raises the errors of `check_adapter`."""
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / ADAPTER_WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise _invalid_adapter(f"{ADAPTER_WEIGHTS_NAME} cannot be read: {error}") from error
    stored = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in weights}
    targets = set(model.base_model.targeted_module_names)
    if stored != targets:
        raise _target_mismatch_error(stored, targets)
    try:
        set_peft_model_state_dict(model, weights)
    except RuntimeError as error:  # shapes
        raise _invalid_adapter(f"its weights do not match this base model: {error}") from error
    log.info("continuing from the adapter with %d modules", len(targets))


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / ADAPTER_CONFIG_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise _invalid_adapter(f"{ADAPTER_CONFIG_NAME} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise _invalid_adapter(f"{ADAPTER_CONFIG_NAME} is not a JSON object")
    return settings


def _get_variant(settings: dict[str, Any]) -> str:
    return "dora" if settings.get("use_dora") else "rslora" if settings.get("use_rslora") else "lora"


def _mismatch_error(name: str, stored: object, expected: object) -> TrainerError:
    message = (
        f"training.lora.{name} is {expected}, but that of the adapter at model.adapterURI is {stored}; set it to this"
    )
    return TrainerError(Reason.CONFIG_INVALID, message)


def _target_mismatch_error(stored: set[str], targets: set[str]) -> TrainerError:
    stored_names, target_names = (
        sorted({module.rsplit(".", 1)[-1] for module in modules}) for modules in (stored, targets)
    )
    if stored_names != target_names:
        return _mismatch_error("targetModules", stored_names, target_names)
    return _invalid_adapter(
        f"the base model has {len(targets)} modules with these names, but the adapter has weights for {len(stored)}"
    )


def _invalid_adapter(problem: str) -> TrainerError:
    return TrainerError(Reason.MODEL_INVALID, f"the adapter at model.adapterURI cannot be loaded: {problem}")
