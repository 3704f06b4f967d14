"""Checks and loads the existing adapter that a run continues to train. Heavy imports happen inside functions."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from finetune_trainer.modeling import existing_adapter_settings

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)


def check_adapter(config: TrainerConfig, folder: Path) -> None:
    """Raise `MODEL_INVALID` if it is not a LoRA adapter, and `CONFIG_INVALID` if it differs from `training.lora` or has
    settings that cannot be continued."""
    settings = _read_settings(folder)
    if settings.get("peft_type") != "LORA":
        raise _invalid_adapter(f"peft_type is {settings.get('peft_type')}, expected LORA")
    for name in ("r", "lora_alpha"):
        if not isinstance(settings.get(name), int | float):
            raise _invalid_adapter(f"{name} in {ADAPTER_CONFIG_NAME} is {settings.get(name)!r}, expected a number")
    lora = config.training.lora
    stored = {"rank": settings.get("r"), "alpha": settings.get("lora_alpha"), "variant": _get_variant(settings)}
    for name, expected in (("rank", lora.rank), ("alpha", lora.alpha), ("variant", lora.variant)):
        if stored[name] != expected:
            raise _mismatch_error(name, stored[name], expected)
    _check_target_parameters(config, settings)
    existing_adapter_settings.check_settings(settings)


def warn_of_other_base_model(config: TrainerConfig, folder: Path) -> None:
    """Log a warning if the adapter names another base model, which may be a copy of `model.uri`."""
    base_name = str(_read_settings(folder).get("base_model_name_or_path"))
    if base_name.rstrip("/") != config.model.uri.removeprefix("hf://").rstrip("/"):
        log.warning("model.adapterURI: the adapter names the base model %s, not %s", base_name, config.model.uri)


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Replace the weights of the new adapter by the stored ones.

    Raises `MODEL_INVALID` for weights that cannot be read or belong to another base model, and `CONFIG_INVALID` for
    other target modules or tokens.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / ADAPTER_WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise _invalid_adapter(f"{ADAPTER_WEIGHTS_NAME} cannot be read: {error}") from error
    stored, expected = (
        _strip_weight_names(names) for names in (weights, get_peft_model_state_dict(model, save_embedding_layers=False))
    )
    if stored != expected:
        raise _target_mismatch_error(stored, expected)
    _check_token_indices(model, folder)
    try:
        set_peft_model_state_dict(model, weights)
    except RuntimeError as error:  # shapes
        raise _invalid_adapter(f"its weights do not match this base model: {error}") from error
    log.info("continuing from the adapter with %d modules", len(expected))


def _strip_weight_names(names: Iterable[str]) -> set[str]:
    """Return the paths of the adapted modules for the names of adapter weights."""
    return {re.split(r"\.lora_|\.token_adapter", name.removeprefix("base_model.model."))[0] for name in names}


def _check_token_indices(model: PeftModel, folder: Path) -> None:
    """Raise `CONFIG_INVALID` if the stored embeddings belong to other tokens. Their rows have the order of the IDs."""
    stored, expected = (
        _collect_token_rows(indices)
        for indices in (
            _read_settings(folder).get("trainable_token_indices"),
            model.peft_config["default"].trainable_token_indices,
        )
    )
    if stored != expected:
        names = [
            f"the tokens with the IDs {sorted(map(list, rows))}" if rows else "none" for rows in (stored, expected)
        ]
        raise _mismatch_error("trainableTokens", *names)


def _collect_token_rows(indices: list[int] | dict[str, list[int]] | None) -> set[tuple[int, ...]]:
    lists = indices.values() if isinstance(indices, dict) else [indices or []]
    return {tuple(token_ids) for token_ids in lists if token_ids}


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / ADAPTER_CONFIG_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise _invalid_adapter(f"{ADAPTER_CONFIG_NAME} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise _invalid_adapter(f"{ADAPTER_CONFIG_NAME} is not a JSON object")
    return settings


def _check_target_parameters(config: TrainerConfig, settings: dict[str, Any]) -> None:
    stored, expected = settings.get("target_parameters") or [], config.training.lora.target_parameters
    if set(stored) != set(expected):
        raise _mismatch_error("targetParameters", sorted(stored), sorted(expected))


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
