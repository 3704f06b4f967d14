"""Checks of the files of a base model, which must be data only, never code. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.quantization_methods import DEQUANTIZED_METHODS, find_stored_method

_AUTO_MAP = "auto_map"
"""Key that names classes of the model's own Python files. They are never imported, so it is refused unless transformers
has a class of its own for the model."""
_CODE_KEYS = ("custom_pipelines", "_attn_implementation_internal", "_experts_implementation_internal")
"""Keys with which a config refers to code or kernels to download, instead of describing a model."""
_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Keys that select a kernel of transformers, or a repository of other kernels (`organization/name`)."""
_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
_NUMBER_KEYS = ("max_length", "max_new_tokens", "min_length", "temperature", "top_p", "top_k", "repetition_penalty")
"""Keys of generation_config.json whose types transformers does not check before it generates."""
_MULTIMODAL_KEYS = frozenset({"vision_config", "audio_config"})
_KNOWN_MODEL_ADVICE = "use a model whose model_type in config.json the installed transformers supports without code"
_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def check_model_dir(model_dir: Path) -> None:
    """Raise `MODEL_INVALID` unless the folder is a complete safetensors model without code."""
    _check_no_code(model_dir)
    if (model_dir / "adapter_config.json").is_file():  # transformers would load the model that it names
        raise _invalid_model("it is an adapter (adapter_config.json); use the model that the adapter was trained on")
    find_stored_method(_read_json(model_dir / "config.json", "it describes the model"))
    _check_generation_config(model_dir / "generation_config.json")
    _check_weights(model_dir)
    if not any((model_dir / name).is_file() for name in _TOKENIZER_FILES):
        raise _invalid_model(f"no tokenizer; expected one of {', '.join(_TOKENIZER_FILES)}")


def find_unsloth_obstacle(settings: Mapping[str, Any]) -> str | None:
    """Return why Unsloth is not used for a model with this config.json, as a description of the model, or None."""
    if not _MULTIMODAL_KEYS.isdisjoint(settings):
        return "a multimodal model"
    method = find_stored_method(settings)
    return f"stored in {method}" if method in DEQUANTIZED_METHODS else None


def _check_no_code(model_dir: Path) -> None:
    """Raise unless transformers has a class for the model, or nothing in the folder refers to code.

    Python files are data that is never imported: everything is loaded with `trust_remote_code=False`.
    """
    is_known = _is_known_model_type(_read_json(model_dir / "config.json", "it describes the model"))
    code = sorted(path.relative_to(model_dir).as_posix() for path in model_dir.rglob("*.py"))
    if code and not is_known:
        raise _invalid_model(f"{code[0]} is code, which is never run; {_KNOWN_MODEL_ADVICE}")
    code_keys = _CODE_KEYS if is_known else (_AUTO_MAP, *_CODE_KEYS)
    for path in sorted(model_dir.glob("*.json")):
        content = _read_json(path, "it is part of the model") if "config" in path.name else {}
        forbidden_keys = _find_code_keys(content, code_keys)
        if forbidden_keys:
            raise _invalid_model(f"{path.name} refers to code ({forbidden_keys[0]}); {_KNOWN_MODEL_ADVICE}")


def _is_known_model_type(config: dict[str, Any]) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return str(config.get("model_type")) in CONFIG_MAPPING_NAMES


def _find_code_keys(value: object, code_keys: tuple[str, ...]) -> list[str]:
    """Return the forbidden keys anywhere in a JSON value: a config may contain those of other models."""
    if isinstance(value, list):
        return [key for item in value for key in _find_code_keys(item, code_keys)]
    if not isinstance(value, dict):
        return []
    direct_keys = [key for key in value if key in code_keys or (key in _KERNEL_KEYS and "/" in str(value[key]))]
    return direct_keys + [key for item in value.values() for key in _find_code_keys(item, code_keys)]


def _check_generation_config(path: Path) -> None:
    """Raise for values of another type. A model may have no such file."""
    settings = _read_json(path, "it has the tokens that end an answer") if path.is_file() else {}
    for key in _TOKEN_KEYS:
        value = settings.get(key)
        if not all(type(token_id) is int for token_id in (value if isinstance(value, list) else [value or 0])):
            raise _invalid_model(f"{key} in {path.name} is {json.dumps(value)}, expected token IDs")
    for key in _NUMBER_KEYS:
        if type(settings.get(key)) not in (int, float, type(None)):
            raise _invalid_model(f"{key} in {path.name} is {json.dumps(settings[key])}, expected a number")


def _check_weights(model_dir: Path) -> None:
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        _check_shards(model_dir, _read_json(index, "it lists the weight files"))
    elif not any(model_dir.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLE_PATTERNS for path in model_dir.glob(pattern))
        hint = f"; {pickles[0]} is a pickle, which can run code when loaded: convert it" if pickles else ""
        raise _invalid_model(f"no *.safetensors file{hint}")
    elif not (model_dir / "model.safetensors").is_file():
        raise _invalid_model(
            "expected the weights in model.safetensors, or a model.safetensors.index.json that lists them"
        )


def _check_shards(model_dir: Path, index: dict[str, Any]) -> None:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise _invalid_model("model.safetensors.index.json has no weight_map")
    shards = {str(name) for name in names.values()}
    invalid_names = sorted(name for name in shards if Path(name).name != name or not name.endswith(".safetensors"))
    if invalid_names:
        raise _invalid_model(
            f"model.safetensors.index.json lists {invalid_names[0][:80]!r}, which is not a safetensors file next to it"
        )
    missing = sorted(name for name in shards if not (model_dir / name).is_file())
    if missing:
        raise _invalid_model(f"{len(missing)} of {len(shards)} weight files are missing, the first is {missing[0]}")
    single_file = "model.safetensors"
    # transformers would load the single file and ignore the index.
    if single_file not in shards and (model_dir / single_file).is_file():
        raise _invalid_model(
            f"it has both {single_file} and {single_file}.index.json, which lists other files; remove one of them"
        )


def _read_json(path: Path, purpose: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise _invalid_model(f"{path.name} is missing; {purpose}") from error
    except ValueError as error:
        raise _invalid_model(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _invalid_model(f"{path.name} is not a JSON object")
    return value


def _invalid_model(problem: str) -> TrainerError:
    return TrainerError(Reason.MODEL_INVALID, f"the base model cannot be loaded: {problem}")
