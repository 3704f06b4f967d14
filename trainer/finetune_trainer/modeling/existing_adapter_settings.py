"""Checks the settings of a stored adapter that `training.lora` has no setting for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

COMPARED = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "target_parameters",
        "trainable_token_indices",
    }
)
"""Settings of `LoraConfig` that must be equal to those in `training.lora`."""
SELECTIONS = frozenset({"target_modules", "exclude_modules"})
"""Settings that select modules. The modules that have weights are compared with `training.lora` instead."""
IRRELEVANT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "peft_version",
        "revision",
        "inference_mode",
        "runtime_config",
        "lora_dropout",  # a setting of each training
        "fan_in_fan_out",  # PEFT derives it from the base model
        "corda_config",  # these configure an `init_lora_weights`
        "eva_config",
        "lora_ga_config",
        "layers_pattern",  # used with `layers_to_transform` only
        "megatron_core",  # used with `megatron_config` only
        "qalora_group_size",  # used with `use_qalora` only
    }
)
"""Settings that neither change what the stored weights compute nor how they are trained further."""
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", None),
    # Other initializations change the weights of the base model, or train only a part of the adapter.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    "layers_to_transform": (None, []),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "megatron_config": (None,),
    "loftq_config": (None, {}),
    "velora_config": (None,),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "monteclora_config": (None,),
    "layer_replication": (None, []),
    "lora_bias": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "ensure_weight_tying": (False, None),
}
"""Settings that change the result, with the values of a usual adapter. Adapters with other values are refused."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `CONFIG_INVALID` if an `adapter_config.json` has a setting that a further training would ignore."""
    for name, value in sorted(settings.items()):
        if name in COMPARED | SELECTIONS | IRRELEVANT:
            continue
        if name not in NEUTRAL_VALUES and value:
            raise _unsupported(f"{name} {value!r}, which this version of PEFT does not know")
        if name in NEUTRAL_VALUES and value not in NEUTRAL_VALUES[name]:
            raise _unsupported(f"{name} {value!r}, which a further training would lose")


def _unsupported(problem: str) -> TrainerError:
    message = (
        f"model.adapterURI: the adapter_config.json has {problem}; merge this adapter into its base model with "
        "PEFT and set model.uri to the result, or use another adapter"
    )
    return TrainerError(Reason.CONFIG_INVALID, message)
