"""Disables the dropout of a model. Imports torch, so import this module only after the backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from peft import PeftModel
from transformers import PretrainedConfig

Settings = list[tuple[dict[str, Any], str]]
"""Attributes of objects: the dictionary of an object's attributes, and a name in it."""


def disable_dropout(model: PeftModel) -> None:
    """Set each probability of dropout to 0, in the modules of the model and in its config.

    TRL sets that of `torch.nn.Dropout` only. Many models pass a number from their config to a function, such as
    `attention_dropout` of Llama and `residual_dropout` of Seed-OSS.
    """
    for attributes, name in chain(_find_module_settings(model), _find_config_settings(model)):
        attributes[name] = 0.0


@contextmanager
def preserve_dropout_settings(model: PeftModel) -> Iterator[None]:
    """Restore the probabilities of dropout in the model's config, which is published with a merged model."""
    saved = [(attributes, name, attributes[name]) for attributes, name in _find_config_settings(model)]
    try:
        yield
    finally:
        for attributes, name, value in saved:
            attributes[name] = value


def _find_module_settings(model: PeftModel) -> Settings:
    settings = []
    for module in model.modules():
        attributes = vars(module)
        settings += _find_probabilities(attributes)
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            settings.append((attributes, "p"))
    return settings


def _find_config_settings(model: PeftModel) -> Settings:
    configs = [vars(module).get("config") for module in model.get_base_model().modules()]
    unique_configs = {id(config): config for config in configs if isinstance(config, PretrainedConfig)}
    return [setting for config in unique_configs.values() for setting in _find_probabilities(vars(config))]


def _find_probabilities(attributes: dict[str, Any]) -> Settings:
    return [(attributes, name) for name, value in attributes.items() if "drop" in name and isinstance(value, float)]
