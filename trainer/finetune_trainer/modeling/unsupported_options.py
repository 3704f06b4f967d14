"""The options that a base model does not support, so that they are not recommended for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.quantization_methods import find_stored_method
from finetune_trainer.modeling import support_matrix
from finetune_trainer.modeling.quantization import compute_quantizable_fraction

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OPTIONS = ("nf4", "packs", "shards")


def list_unsupported_options(config: TrainerConfig, meta_model: PreTrainedModel) -> frozenset[str]:
    """Return those of `nf4`, `packs` and `shards`, which are columns of the support matrix, that a run with this model
    on the `meta` device would refuse. `packs` and `shards` are among them unless they were measured."""
    family = meta_model.config.model_type
    problems = {name: support_matrix.find_problem(family, name) is not None for name in _OPTIONS}
    for name in ("packs", "shards"):
        problems[name] |= not support_matrix.is_measured(family, name)
    problems["nf4"] |= not _can_quantize(config, meta_model)
    problems["shards"] |= not _can_shard(meta_model)
    return frozenset(name for name, is_refused in problems.items() if is_refused)


def _can_quantize(config: TrainerConfig, meta_model: PreTrainedModel) -> bool:
    is_stored_quantized = find_stored_method(meta_model.config.to_dict()) is not None
    covers_enough = compute_quantizable_fraction(meta_model) >= config.model.min_quantized_fraction
    return covers_enough and not is_stored_quantized


def _can_shard(meta_model: PreTrainedModel) -> bool:
    from finetune_trainer.modeling.sharding import check_shardable

    try:
        check_shardable(meta_model)
    except TrainerError:
        return False
    return True
