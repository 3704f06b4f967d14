"""Finds the modules and parameters of a base model that get an adapter. Heavy imports happen inside functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.language_part import find_language_prefix

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_OUTPUT = frozenset({"out_proj"})
_MAMBA_1 = frozenset({"dt_proj", "out_proj", "x_proj"})
_DIRECTLY_READ: dict[str, frozenset[str]] = {
    **dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"), _OUTPUT),
    **dict.fromkeys(("falcon_mamba", "mamba"), _MAMBA_1),
    "jamba": frozenset({"dt_proj"}),
}
"""Modules whose weight is read without the adapter, by family: by a fused kernel, or always in Jamba. PEFT rejects some
of them: https://github.com/huggingface/peft/pull/2562"""
_ROUTER_NAMES = frozenset({"gate", "router", "shared_expert_gate"})
_ROUTER_CLASS = re.compile(r"(Router|Gating|MoE\w*Gate)$")
_INDEXER_CLASS = re.compile(r"Indexer$")
"""Modules of sparse attention that select tokens. The selection has no gradient."""
_OUTSIDE = "outside of the language part, which no text reaches"


def resolve_target_modules(config: TrainerConfig, base: PreTrainedModel) -> str | list[str]:
    """Return `all-linear` as PEFT understands it, or names and paths of modules.

    As in PEFT, a name matches every module whose path equals the name or ends with it. Modules outside of the language
    part never match. Raises `CONFIG_INVALID` if a module cannot have an adapter.
    """
    targets = config.training.lora.target_modules
    obstacles = _find_obstacles(base)
    if targets == ["all-linear"]:
        return _select_all_linear(base, obstacles)
    resolved = []
    for index, target in enumerate(targets):
        problem = f"{target} is named twice" if target in targets[:index] else _find_target_problem(target, obstacles)
        if problem:
            raise invalid_targets(f"{problem}; use all-linear or some of {', '.join(_list_valid_targets(obstacles))}")
        resolved.extend(_exclude_outside(target, obstacles))
    return resolved


def resolve_target_parameters(config: TrainerConfig, base: PreTrainedModel) -> list[str] | None:
    """Return `training.lora.targetParameters` for PEFT. Raises `CONFIG_INVALID` if a parameter cannot have an adapter.

    As in PEFT, a name matches every parameter whose path equals the name or ends with it.
    """
    lora = config.training.lora
    if not lora.target_parameters:
        return None
    for setting, is_set in (("dropout", lora.dropout > 0), ("variant", lora.variant == "dora")):
        if is_set:  # PEFT's ParamWrapper does not support them
            value = lora.model_dump()[setting]
            raise _invalid_parameters(
                f"PEFT does not support {setting} {value} for them; change training.lora.{setting}"
            )
    obstacles = _find_parameter_obstacles(base)
    for name in lora.target_parameters:
        if problem := _find_target_problem(name, obstacles):
            raise _invalid_parameters(f"{problem}; {_describe_candidates(obstacles)}")
    return list(lora.target_parameters)


def strip_layer_number(path: str) -> str:
    """Return the part of a path that all layers share: `mlp.experts.down_proj` for
    `model.layers.0.mlp.experts.down_proj`."""
    return re.sub(r"^.*?\.\d+\.", "", path)


def invalid_targets(problem: str) -> TrainerError:
    """Return the error for target modules that cannot have an adapter."""
    return TrainerError(Reason.CONFIG_INVALID, f"training.lora.targetModules: {problem}")


def _invalid_parameters(problem: str) -> TrainerError:
    return TrainerError(Reason.CONFIG_INVALID, f"training.lora.targetParameters: {problem}")


def _select_all_linear(base: PreTrainedModel, obstacles: dict[str, str | None]) -> str | list[str]:
    """Return the linear layers of the language part, except for the output head, routers and indexers.

    PEFT's own `all-linear` includes routers and other parts of a multimodal model, and for some families the experts.
    """
    paths = {path for path, obstacle in obstacles.items() if obstacle is None and not _is_router(path, base)}
    if not paths:
        raise invalid_targets(f"{type(base).__name__} has no linear layer that can have an adapter")
    if paths == _list_linear_layers(base) and not _converts_to_experts(base, "all-linear"):
        return "all-linear"
    ambiguous_names = {_leaf(path) for path in obstacles.keys() - paths}
    return sorted({path if _is_ambiguous(_leaf(path), ambiguous_names) else _leaf(path) for path in paths})


def _is_ambiguous(name: str, ambiguous_names: set[str]) -> bool:
    return name.isdigit() or name in ambiguous_names


def _list_linear_layers(base: PreTrainedModel) -> set[str]:
    """Return the modules that PEFT selects for `all-linear`."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = base.get_output_embeddings()
    return {path for path, module in base.named_modules() if isinstance(module, Linear | Conv1D) and module is not head}


def _find_target_problem(target: str, obstacles: dict[str, str | None]) -> str | None:
    matches = [obstacles[path] for path in _list_matches(target, obstacles)]
    if not matches:
        return f"the model has no {target}"
    if all(obstacle == _OUTSIDE for obstacle in matches):
        return f"{target} cannot have an adapter, it is {_OUTSIDE}"
    obstacle = next((obstacle for obstacle in matches if obstacle not in (None, _OUTSIDE)), None)
    return f"{target} cannot have an adapter, it is {obstacle}" if obstacle else None


def _list_matches(target: str, paths: Iterable[str]) -> list[str]:
    return [path for path in paths if path == target or path.endswith(f".{target}")]


def _exclude_outside(target: str, obstacles: dict[str, str | None]) -> list[str]:
    """Return the target, or the paths of its matches in the language part if it has others as well."""
    matches = _list_matches(target, obstacles)
    valid = [path for path in matches if obstacles[path] is None]
    return [target] if valid == matches else valid


def _find_obstacles(base: PreTrainedModel) -> dict[str, str | None]:
    """Return by path what each module is if it cannot have an adapter, else None."""
    prefix, head = find_language_prefix(base), base.get_output_embeddings()
    indexer_prefixes = tuple(f"{path}." for path, module in base.named_modules() if _is_indexer(module))
    obstacles: dict[str, str | None] = {}
    for path, module in base.named_modules():
        if module is head:
            obstacles[path] = "the output head"
        elif path and not path.startswith(prefix):
            obstacles[path] = _OUTSIDE
        elif path.startswith(indexer_prefixes):
            obstacles[path] = "a part of an indexer, which gets no gradient"
        elif path:
            obstacles[path] = _find_obstacle(base, path, module)
    converted = {name for name in map(_leaf, obstacles) if _converts_to_experts(base, name)}
    return {
        path: obstacle or ("a name that PEFT applies to the fused experts" if _leaf(path) in converted else None)
        for path, obstacle in obstacles.items()
    }


def _find_obstacle(base: PreTrainedModel, path: str, module: torch.nn.Module) -> str | None:
    import torch
    from transformers.pytorch_utils import Conv1D

    kind = type(module).__name__
    if isinstance(module, torch.nn.Embedding):
        return "an embedding"
    # Routers return a tuple, which PEFT's layer cannot wrap, unless they are a plain linear layer.
    if _ROUTER_CLASS.search(kind) or (_leaf(path) in _ROUTER_NAMES and not kind.startswith("Linear")):
        return "a router, which chooses experts"
    if not isinstance(module, torch.nn.Linear | Conv1D):
        return f"a {kind}, not a linear layer"
    if _leaf(path) in _DIRECTLY_READ.get(base.config.get_text_config().model_type, ()):
        return "read by a kernel that ignores adapters"
    return None


def _is_indexer(module: torch.nn.Module) -> bool:
    return _INDEXER_CLASS.search(type(module).__name__) is not None


def _is_router(path: str, base: PreTrainedModel) -> bool:
    """Return whether a module is a router or a part of one."""
    parts = path.split(".")
    parents = (base.get_submodule(".".join(parts[:end])) for end in range(1, len(parts) + 1))
    return not _ROUTER_NAMES.isdisjoint(parts) or any(_ROUTER_CLASS.search(type(parent).__name__) for parent in parents)


def _converts_to_experts(base: PreTrainedModel, target: str) -> bool:
    """Return whether PEFT replaces a target by the fused experts, as in adapters that older versions of transformers
    trained: https://github.com/huggingface/peft/pull/2995"""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    probe = LoraConfig(target_modules=target if target == "all-linear" else [target])
    try:
        convert_peft_config_for_transformers(probe, base, None)
    except ValueError:  # it must be named together with another layer that is fused into the same parameter
        return True
    return bool(probe.target_parameters)


def _list_valid_targets(obstacles: dict[str, str | None]) -> list[str]:
    """Return the names for which all matching modules can have an adapter."""
    names = {_leaf(path) for path in obstacles}
    invalid_names = {_leaf(path) for path, obstacle in obstacles.items() if obstacle not in (None, _OUTSIDE)}
    valid_names = {_leaf(path) for path, obstacle in obstacles.items() if obstacle is None}
    return sorted(name for name in (names & valid_names) - invalid_names if not name.isdigit())


def _find_parameter_obstacles(base: PreTrainedModel) -> dict[str, str | None]:
    """Return by path what each parameter is if it cannot have an adapter, else None."""
    prefix = find_language_prefix(base)
    obstacles: dict[str, str | None] = {}
    for path, parameter in base.named_parameters():
        module_path, _, name = path.rpartition(".")
        if not path.startswith(prefix):
            obstacles[path] = _OUTSIDE
        elif _is_router(module_path, base):
            obstacles[path] = "the weight of a router, which chooses experts"
        elif name.endswith("bias") or parameter.dim() not in (2, 3):
            obstacles[path] = "no matrix or stack of matrices"
        else:
            obstacles[path] = _find_owner_obstacle(base.get_submodule(module_path))
    return obstacles


def _find_owner_obstacle(module: torch.nn.Module) -> str | None:
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear | Conv1D):
        return "the weight of a linear layer, which training.lora.targetModules can name"
    if isinstance(module, torch.nn.Embedding):
        return "an embedding, whose tokens training.lora.trainableTokens can name"
    if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
        return "the weight of a convolution"
    return None


def _describe_candidates(obstacles: dict[str, str | None]) -> str:
    names = sorted({strip_layer_number(path) for path, obstacle in obstacles.items() if obstacle is None})
    return f"use some of {', '.join(names)}" if names else "the model has no such parameters, remove the setting"


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]
