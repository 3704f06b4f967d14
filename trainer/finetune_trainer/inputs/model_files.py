"""What may be loaded as a base model: data only, never code. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

_CODE_KEYS = ("auto_map", "custom_pipelines", "_attn_implementation_internal", "_experts_implementation_internal")
"""Keys by which a config names code to fetch or kernels to load instead of describing a model."""
_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Keys that choose among transformers' own kernels, or name a repository of others (`organisation/name`)."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def check_model_dir(model_dir: Path) -> None:
    """Refuse, with `MODEL_INVALID`, a folder that is no complete safetensors model or that brings code along."""
    _check_no_code(model_dir)
    if (model_dir / "adapter_config.json").is_file():  # transformers would go and load the model that it names
        raise _invalid("it holds an adapter (adapter_config.json); give the model that the adapter was made for")
    config = _read_json(model_dir / "config.json", "it describes the model")
    if "quantization_config" in config:
        raise _invalid("config.json has quantization_config; only unquantised models can be tuned, store that one")
    _check_weights(model_dir)
    if not any((model_dir / name).is_file() for name in _TOKENIZERS):
        raise _invalid(f"no tokenizer; expected one of {', '.join(_TOKENIZERS)}")


def _check_no_code(model_dir: Path) -> None:
    code = sorted(path.relative_to(model_dir).as_posix() for path in model_dir.rglob("*.py"))
    if code:
        raise _invalid(f"{code[0]} is code; models are loaded as data only, so use one that transformers knows")
    for path in sorted(model_dir.glob("*.json")):
        found = _code_keys(_read_json(path, "it is part of the model")) if "config" in path.name else []
        if found:
            raise _invalid(f"{path.name} asks for code ({found[0]}); use a model that transformers knows without it")


def _code_keys(value: object) -> list[str]:
    """The forbidden keys anywhere in a JSON value: a model's config may hold another model's."""
    if isinstance(value, list):
        return [key for item in value for key in _code_keys(item)]
    if not isinstance(value, dict):
        return []
    here = [key for key in value if key in _CODE_KEYS or (key in _KERNEL_KEYS and "/" in str(value[key]))]
    return here + [key for item in value.values() for key in _code_keys(item)]


def _check_weights(model_dir: Path) -> None:
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        _check_shards(model_dir, _read_json(index, "it lists the weights' files"))
    elif not any(model_dir.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in model_dir.glob(pattern))
        found = f"; {pickles[0]} is a pickle, which can run code when loaded: convert it" if pickles else ""
        raise _invalid(f"no *.safetensors file{found}")
    elif not (model_dir / "model.safetensors").is_file():
        raise _invalid("expected the weights in model.safetensors, or a model.safetensors.index.json that lists them")


def _check_shards(model_dir: Path, index: dict[str, Any]) -> None:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise _invalid("model.safetensors.index.json has no weight_map")
    shards = {str(name) for name in names.values()}
    wrong = sorted(name for name in shards if Path(name).name != name or not name.endswith(".safetensors"))
    if wrong:
        raise _invalid(f"model.safetensors.index.json names {wrong[0][:80]!r}, which is no safetensors file beside it")
    missing = sorted(name for name in shards if not (model_dir / name).is_file())
    if missing:
        raise _invalid(f"{len(missing)} of {len(shards)} weight files are missing, the first is {missing[0]}")
    whole = "model.safetensors"
    if whole not in shards and (model_dir / whole).is_file():  # transformers would load it and ignore the index
        raise _invalid(f"both {whole} and {whole}.index.json, which lists other files; remove what is not the model")


def _read_json(path: Path, purpose: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise _invalid(f"{path.name} is missing; {purpose}") from error
    except ValueError as error:
        raise _invalid(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _invalid(f"{path.name} is not a JSON object")
    return value


def _invalid(what: str) -> TrainerError:
    return TrainerError(Reason.MODEL_INVALID, f"the base model cannot be loaded: {what}")
