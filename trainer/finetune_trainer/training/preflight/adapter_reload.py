"""Checks before the first step that PEFT restores the adapter from its files, as servers load it.

Imports torch, so import this module only after the backend.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from finetune_trainer.contract import Reason
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.adapter_reload import describe_modules, find_unrestored_modules, get_module_path
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.preflight.sample import Sample

if TYPE_CHECKING:
    from peft import PeftModel

_COPY = "preflight"
"""Name of the adapter that is loaded."""


def check_adapter_reload(sample: Sample) -> PreflightFinding:
    """Save the adapter with random weights, load it in addition to the trained one, and compare the two.

    Nothing of it remains in the model. All ranks must call it. Raises `CONFIG_INVALID` if the adapter of some modules
    is not restored, and `MODEL_UNSUPPORTED` if none is.
    """
    model = sample.trainer.model
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    with randomize_weights(model), sample.translate_errors("loading"):
        lost = _reload_adapter(model, Path(sample.trainer.args.output_dir).parent)
    if collectives.all_reduce_any(bool(lost))[0]:
        raise _build_error(sample.model_class, lost, sorted(set(map(get_module_path, trained))))
    message = f"PEFT restores all {len(trained)} weights of the adapter from its files"
    return PreflightFinding(check="adapterReload", status="passed", message=message, value=len(trained))


def _reload_adapter(model: PeftModel, work_dir: Path) -> list[str]:
    """Return the modules whose adapter differs after it is saved and loaded."""
    work_dir.mkdir(parents=True, exist_ok=True)  # that of a fold does not exist yet
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
        try:
            model.load_adapter(folder, adapter_name=_COPY, torch_device=str(model.device))
            return find_unrestored_modules(model, _COPY)
        finally:
            if _COPY in model.peft_config:
                model.delete_adapter(_COPY)


@contextmanager
def randomize_weights(model: PeftModel, scale: float = 1.0) -> Iterator[None]:
    """Replace the trained weights, of which a new adapter has zeros, by random ones with this deviation. Restore them
    and the active adapter afterwards."""
    is_trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    weights = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
    try:
        for name in weights:
            parameter = model.get_parameter(name)
            parameter.data = torch.randn_like(parameter) * scale
        yield
    finally:
        model.set_adapter("default")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_trained[name])
            parameter.data = weights.get(name, parameter.data)


def _build_error(model_class: str, lost: Sequence[str], modules: Sequence[str]) -> TrainerError:
    lost_names = {path.rsplit(".", 1)[-1] for path in lost}
    restored_names = sorted({path.rsplit(".", 1)[-1] for path in modules} - lost_names)
    message = (
        f"training.lora.targetModules: PEFT does not restore the adapter of {len(lost)} of {len(modules)} modules of "
        f"{model_class} from its files: {describe_modules(list(lost))}"
    )
    if not restored_names:
        return TrainerError(Reason.MODEL_UNSUPPORTED, f"{message}; use a base model of another architecture")
    return TrainerError(Reason.CONFIG_INVALID, f"{message}; set targetModules to {', '.join(restored_names)}")
