"""Checks and loads the adapters of `evaluation.baselines`. Heavy imports happen inside functions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from finetune_trainer.modeling import existing_adapter_settings
from finetune_trainer.modeling.adapter_keys import Shapes, list_adapter_shapes
from finetune_trainer.modeling.model_config import build_meta_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig

_ADAPTER_NAME = "baseline"
"""Name of the adapter in the model. That of the trained adapter is `default`."""
_SUPPORTED_SETTINGS = frozenset({"alpha_pattern", "layers_to_transform", "lora_bias", "rank_pattern"})
"""Settings that an adapter to compare with may have, although a training cannot continue from it."""


def check_baselines(folders: Mapping[str, Path], model_config: PreTrainedConfig) -> None:
    """Raise `MODEL_INVALID` for an adapter that is damaged, belongs to another base model, or changes the base model
    when it is loaded. `folders` are those of the adapters by name."""
    for name, folder in folders.items():
        try:
            _check_settings(folder)
            _check_weights(folder, model_config)
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:  # of PEFT, for wrong settings
            message = f"evaluation.baselines {name}: the adapter cannot be compared with this model: {error}"
            raise TrainerError(Reason.MODEL_INVALID, message) from error


def check_unsloth_baselines(folders: Mapping[str, Path], model: PeftModel) -> None:
    """Raise `CONFIG_INVALID` for adapters that Unsloth cannot run beside the trained one: its kernels read the matrices
    of the active adapter in all modules that the trained adapter has, and have no DoRA."""
    trained_modules = set(map(_get_module_path, list_adapter_shapes(model)))
    uses_dora = bool(model.peft_config["default"].use_dora)
    for name, folder in folders.items():
        modules = set(map(_get_module_path, _read_shapes(folder)))
        if modules != trained_modules or bool(_read_settings(folder).get("use_dora")) != uses_dora:
            raise TrainerError(
                Reason.CONFIG_INVALID,
                f"evaluation.baselines {name}: Unsloth cannot measure an adapter with other target modules or another "
                "variant than training.lora; set training.backend to transformers",
            )


@contextmanager
def use_baseline(model: PeftModel, folder: Path) -> Iterator[None]:
    """Make a stored adapter the active one in the block. Afterwards the model is as before.

    Raises `ValueError` if the files lack weights of the adapter.
    """
    tuner, wrapped_paths = model.base_model, set(_list_wrappers(model))
    targeted_names = list(tuner.targeted_module_names)
    try:
        result = model.load_adapter(str(folder), adapter_name=_ADAPTER_NAME, is_trainable=False)
        if result.missing_keys:
            raise ValueError(f"the adapter has no weights for {sorted(result.missing_keys)[0]}")
        model.set_adapter(_ADAPTER_NAME, inference_mode=True)
        yield
    finally:
        model.set_adapter("default")
        if _ADAPTER_NAME in model.peft_config:
            model.delete_adapter(_ADAPTER_NAME)
        _unwrap_modules(model, wrapped_paths)
        tuner.targeted_module_names[:] = targeted_names  # the export reads there which modules are trained


def _list_wrappers(model: PeftModel) -> dict[str, Any]:
    """Return the modules that PEFT has put in the place of modules of the base model, by path."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    wrapper_types = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {path: module for path, module in model.named_modules() if isinstance(module, wrapper_types)}


def _unwrap_modules(model: PeftModel, kept_paths: set[str]) -> None:
    """Put the modules of the base model back in the place of all wrappers but those at `kept_paths`."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    done = set(kept_paths)
    for path, wrapper in _list_wrappers(model).items():
        if path in done or any(path.startswith(f"{parent}.") for parent in done):
            continue  # a wrapper may contain others
        is_auxiliary = isinstance(wrapper, AuxiliaryTrainingWrapper)
        model.set_submodule(path, wrapper.original_module if is_auxiliary else wrapper.get_base_layer())
        done.add(path)


def _check_settings(folder: Path) -> None:
    """Raise `ValueError` for another kind of adapter, and for settings that would remain after the comparison."""
    settings = _read_settings(folder)
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {settings.get('peft_type')}, expected LORA")
    harmless = existing_adapter_settings.COMPARED | existing_adapter_settings.SELECTIONS
    harmless |= existing_adapter_settings.IRRELEVANT | _SUPPORTED_SETTINGS
    for name, value in sorted(settings.items()):
        if name not in harmless and value and value not in existing_adapter_settings.NEUTRAL_VALUES.get(name, ()):
            raise ValueError(f"{ADAPTER_CONFIG_NAME} has {name} {value!r}, which is not supported here")


def _check_weights(folder: Path, model_config: PreTrainedConfig) -> None:
    """Raise `ValueError` if names or shapes of the weights differ from those that PEFT creates for the base model."""
    stored, expected = _read_shapes(folder), _compute_expected_shapes(folder, model_config)
    misplaced = sorted(name for name in stored if stored[name] != expected.get(name))
    missing = sorted(expected.keys() - stored.keys())
    if misplaced or missing:
        raise ValueError(
            f"{len(misplaced)} of its {len(stored)} weights do not fit the base model and {len(missing)} are missing, "
            f"such as {(misplaced + missing)[0]}; use an adapter of the same base model"
        )


def _compute_expected_shapes(folder: Path, model_config: PreTrainedConfig) -> Shapes:
    import torch
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig.from_pretrained(str(folder))
    settings.base_model_name_or_path = None  # PEFT warns if it differs from that of the model, which has none
    meta_model = build_meta_model(model_config)
    with torch.device("meta"):
        return list_adapter_shapes(get_peft_model(meta_model, settings))


def _get_module_path(weight_name: str) -> str:
    return re.split(r"\.(?:lora_|token_adapter)", weight_name)[0]


def _read_settings(folder: Path) -> dict[str, Any]:
    """Return `adapter_config.json`. Raises `ValueError` or `TypeError` if it is not a JSON object."""
    settings = json.loads((folder / ADAPTER_CONFIG_NAME).read_bytes())
    if not isinstance(settings, dict):
        raise TypeError(f"{ADAPTER_CONFIG_NAME} is not a JSON object")
    return settings


def _read_shapes(folder: Path) -> Shapes:
    """Return the shapes of the stored weights by name. Raises `ValueError` if the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / ADAPTER_WEIGHTS_NAME, framework="pt") as weights:
            names: list[str] = list(weights.keys())
            return {name: tuple(weights.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{ADAPTER_WEIGHTS_NAME} cannot be read: {error}") from error
