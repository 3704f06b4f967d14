"""Base models whose weights are stored quantized, as `quantization_config` in config.json says. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

DEQUANTIZED_METHODS = ("mxfp4", "fp8")
"""Methods whose weights are converted to the precision of the run while they are loaded: their layers have no backward
pass."""
_BITSANDBYTES = "bitsandbytes"
_KEYS = ("quantization_config", "compression_config")


def find_stored_method(config: Mapping[str, Any]) -> str | None:
    """Return how the weights of a model are stored, from the content of its config.json: `nf4` or `int8` of
    bitsandbytes, `mxfp4` or `fp8`, or None if they are not quantized.

    Raises `MODEL_UNSUPPORTED` for other methods.
    """
    settings = _find_settings(config)
    text_config = config.get("text_config")
    if settings is None and isinstance(text_config, dict):
        settings = _find_settings(text_config)
        if settings is not None:  # transformers would ignore them
            raise _unsupported_method_error(f"{_name_method(settings)}, in its text part only")
    if settings is None:
        return None
    method = _name_method(settings)
    if method not in ("nf4", "int8", *DEQUANTIZED_METHODS):
        raise _unsupported_method_error(method)
    return method


def _find_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    settings = next((config[key] for key in _KEYS if config.get(key) is not None), None)
    return settings if settings is None or isinstance(settings, dict) else {}


def _name_method(settings: dict[str, Any]) -> str:
    # Early versions of transformers stored no method for bitsandbytes, the only one that they knew.
    is_4bit, is_8bit = bool(settings.get("load_in_4bit")), bool(settings.get("load_in_8bit"))
    method = str(settings.get("quant_method") or (_BITSANDBYTES if is_4bit or is_8bit else "an unknown method"))
    if method != _BITSANDBYTES:
        return method
    return "int8" if is_8bit else str(settings.get("bnb_4bit_quant_type", "fp4"))


def _unsupported_method_error(method: str) -> TrainerError:
    message = (
        f"the weights of the base model are quantized with {method} (quantization_config in config.json), which the "
        "trainer cannot train on; set model.uri to the original, unquantized model, and model.quantization to nf4 to "
        "save memory"
    )
    return TrainerError(Reason.MODEL_UNSUPPORTED, message)
