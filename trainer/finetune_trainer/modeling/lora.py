"""Creates the LoRA adapter with PEFT. Heavy imports happen inside functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.text_modules import find_language_prefix

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_MAMBA_FAMILIES = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
"""PEFT rejects their `out_proj`, whose weight a fused kernel reads without the adapter:
https://github.com/huggingface/peft/pull/2562"""


def add_adapter(config: TrainerConfig, base: PreTrainedModel) -> PeftModel:
    """Return the base model with a new adapter. Raises `CONFIG_INVALID` for target modules that cannot have one."""
    from peft import get_peft_model

    lora = build_lora_config(config, base)
    with _translate_target_errors(config):
        return get_peft_model(base, lora)


def build_lora_config(config: TrainerConfig, base: PreTrainedModel) -> LoraConfig:
    """Return the adapter config for a base model. Raises `CONFIG_INVALID` for target modules that cannot have one."""
    from peft import LoraConfig

    lora = config.training.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=resolve_lora_alpha(config),
        lora_dropout=lora.dropout,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        target_modules=resolve_target_modules(config, base),
        bias="none",
        task_type="CAUSAL_LM",
    )


def resolve_lora_alpha(config: TrainerConfig) -> float:
    """Return alpha, as an integer if it is one: some servers parse it as an integer."""
    alpha = float(config.training.lora.alpha)
    return int(alpha) if alpha.is_integer() else alpha


def resolve_target_modules(config: TrainerConfig, base: PreTrainedModel) -> str | list[str]:
    """Return `all-linear`, or names of modules. Raises `CONFIG_INVALID` if one of them cannot have an adapter.

    As in PEFT, a name matches every module whose path equals the name or ends with it.
    """
    targets = config.training.lora.target_modules
    all_linear = targets == ["all-linear"]
    language_prefix = find_language_prefix(base)
    if all_linear and base.config.model_type not in _MAMBA_FAMILIES and not language_prefix:
        return "all-linear"
    obstacles = {path: _find_obstacle(base, path, module) for path, module in base.named_modules() if path}
    if language_prefix:  # names would also match modules of the vision tower
        obstacles = {path: obstacle for path, obstacle in obstacles.items() if path.startswith(language_prefix)}
    if all_linear and language_prefix:
        return [path for path, obstacle in obstacles.items() if not obstacle]
    if all_linear:  # PEFT would select modules that it then rejects
        return _list_valid_targets(obstacles)
    for index, target in enumerate(targets):
        problem = f"{target} is named twice" if target in targets[:index] else _find_target_problem(target, obstacles)
        if problem:
            raise _invalid_targets(f"{problem}; use all-linear or some of {', '.join(_list_valid_targets(obstacles))}")
    if language_prefix:
        return [path for path in obstacles if path.endswith(tuple(f".{target}" for target in targets))]
    return list(targets)


def _find_target_problem(target: str, obstacles: dict[str, str | None]) -> str | None:
    matches = [reason for path, reason in obstacles.items() if path == target or path.endswith(f".{target}")]
    if not matches:
        return f"the model has no {target}"
    obstacle = next((reason for reason in matches if reason), None)
    return f"{target} cannot have an adapter, it is {obstacle}" if obstacle else None


def _find_obstacle(base: PreTrainedModel, path: str, module: torch.nn.Module) -> str | None:
    """Return what a module is if it cannot have an adapter, else None."""
    import torch
    from transformers.pytorch_utils import Conv1D

    name, kind = path.rsplit(".", 1)[-1], type(module).__name__
    if isinstance(module, torch.nn.Embedding):
        return "an embedding"
    if module is base.get_output_embeddings():
        return "the output head"
    # Some routers are subclasses of linear layers that return a tuple, which PEFT's layer cannot wrap.
    if kind.endswith("Router") or name in ("router", "gate"):
        return "a router, which chooses experts"
    if not isinstance(module, torch.nn.Linear | Conv1D):
        return f"a {kind}, not a linear layer"
    if name == "out_proj" and base.config.model_type in _MAMBA_FAMILIES:
        return "read by a kernel that ignores adapters"
    return None


def _list_valid_targets(obstacles: dict[str, str | None]) -> list[str]:
    """Return the names for which all matching modules can have an adapter."""
    names = {path.rsplit(".", 1)[-1] for path in obstacles}
    invalid_names = {path.rsplit(".", 1)[-1] for path, obstacle in obstacles.items() if obstacle}
    return sorted(name for name in names - invalid_names if not name.isdigit())


@contextmanager
def _translate_target_errors(config: TrainerConfig) -> Iterator[None]:
    """Translate errors of PEFT, which also has rules on combinations, such as expert layers that go together."""
    try:
        yield
    except ValueError as error:
        if config.training.lora.target_modules == ["all-linear"]:
            raise
        raise _invalid_targets(f"these modules cannot have an adapter: {error}") from error


def _invalid_targets(problem: str) -> TrainerError:
    return TrainerError(Reason.CONFIG_INVALID, f"training.lora.targetModules: {problem}")
