"""The reference model of `dpo` and `kto`: a frozen copy of the adapter that training starts from, or the base model.

Imports peft, so import this module only after the backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import get_peft_model_state_dict, set_peft_model_state_dict

if TYPE_CHECKING:
    from peft import PeftModel

REFERENCE_ADAPTER = "ref"
"""TRL's name of the copy. If the model has this adapter, TRL uses it as the reference, otherwise the base model."""


def set_reference(model: PeftModel, keep_copy: bool) -> None:
    """Make the current adapter the reference if `keep_copy` is set, otherwise the base model.

    TRL adds the copy when it creates a trainer for a model with an adapter, also if the adapter is new and equals the
    base model. This must be called before a checkpoint is loaded, which replaces the weights of the current adapter.
    """
    if not keep_copy:
        remove_reference(model)
        return
    if REFERENCE_ADAPTER not in model.peft_config:  # Unsloth's version of TRL may not add it
        model.add_adapter(REFERENCE_ADAPTER, model.peft_config["default"])
    # TRL copies only parameters with ".default." in their names, not those of `trainableTokens`.
    weights = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    set_peft_model_state_dict(model, weights, adapter_name=REFERENCE_ADAPTER)


def remove_reference(model: PeftModel) -> None:
    """Remove the copy, if there is one, so that the model has only the adapter that is trained."""
    if REFERENCE_ADAPTER in model.peft_config:
        model.delete_adapter(REFERENCE_ADAPTER)
        model.set_adapter("default")
