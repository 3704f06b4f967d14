"""Shards the base model among the ranks with FSDP2, layer by layer. Imports torch, so import this module only after the
backend.

Only the frozen base model is sharded. Each rank has the complete adapter: it is small, may have another precision than
the base model, which the parameters of an FSDP unit must not have, and is saved and resumed as without sharding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig
from transformers.distributed.fsdp import apply_fully_sharded_data_parallelism, expand_fsdp_plan

from finetune_trainer.contract import Reason
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.quantization_methods import find_stored_method
from finetune_trainer.modeling.library_errors import translate_memory_errors

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Heartbeat = Callable[[], None]
"""Called while this rank waits for other ranks, which is no stall."""

_MESH_NAME = "fsdp"
_MEMORY_ADVICE = "evaluate the sharded model; use more GPUs, a smaller model.maxLength or evaluation.maxNewTokens"
_MAX_UNLAYERED_SHARE = 0.25
"""Largest share of the weights outside of the layers: each rank gathers them in a forward pass, and keeps them until
the backward pass."""


def check_shardable(model: PreTrainedModel) -> None:
    """Raise `CONFIG_INVALID` for a model whose weights are stored quantized, for a class that transformers does not
    shard, and if too many weights belong to no layer. The model may be on the `meta` device."""
    method = find_stored_method(model.config.to_dict())
    if method is not None:
        raise _build_error(model, f"its weights are stored in {method}")
    share = 1 - sum(check_layers(model).values()) / model.num_parameters()
    if share > _MAX_UNLAYERED_SHARE:
        problem = f"{share:.0%} of its weights belong to no layer that transformers shards, so each GPU would hold them"
        raise _build_error(model, problem)


def check_layers(model: PreTrainedModel) -> dict[int, int]:
    """Return the number of elements of each weight that belongs to a sharded layer, by `id`. Raise `CONFIG_INVALID` if
    there are none."""
    units = [module for group in expand_fsdp_plan(model, model.fsdp_plan or {}) for _, module in group]
    layered = {id(weight): weight.numel() for unit in units for weight in unit.parameters()}
    if not layered:
        raise _build_error(model, "transformers does not say which layers to shard")
    return layered


def _build_error(model: PreTrainedModel, problem: str) -> TrainerError:
    message = f"compute.sharding full does not support {type(model).__name__}: {problem}"
    return TrainerError(Reason.CONFIG_INVALID, f"{message}; set sharding to none, or use another base model")


def build_loading_arguments() -> dict[str, Any]:
    """Return the arguments of `from_pretrained` with which each rank reads only its part of the weights."""
    if topology.world_size() == 1:
        return {}
    return {"device_map": None, "distributed_config": DistributedConfig(fsdp_size=topology.world_size())}


def shard_loaded_model(base: PreTrainedModel) -> None:
    """Finish the sharding of a model that was loaded with `build_loading_arguments`. A single rank, which has loaded it
    completely, then computes in the same way as several ones."""
    if topology.world_size() == 1:
        mesh = collectives.init_single_rank_mesh(base.device.type, _MESH_NAME)
        _untie_weights(base)
        apply_fully_sharded_data_parallelism(base, mesh)
        base.tie_weights(recompute_mapping=False)
    # Rank 0 generates alone, in `keep_in_step`. Otherwise `generate` would communicate after each token.
    base._is_fsdp_managed_module = False
    # Otherwise PEFT would gather the complete base model whenever it saves the adapter, as for tensor parallelism.
    base._tp_size = None


def _untie_weights(base: PreTrainedModel) -> None:
    """Make each tied weight a parameter of its own, as it is when `from_pretrained` shards a model: two FSDP units must
    not share one."""
    for name in base.all_tied_weights_keys:
        module_name, _, weight_name = name.rpartition(".")
        module = base.get_submodule(module_name)
        weight = torch.nn.Parameter(base.get_parameter(name).detach(), requires_grad=False)
        module.register_parameter(weight_name, weight)


def is_sharded(model: PeftModel) -> bool:
    """Return whether the base model is sharded."""
    return isinstance(model.get_base_model(), FSDPModule)


def call_base_with_hooks(model: PeftModel) -> None:
    """Make PEFT call the base model rather than its `forward`, which would skip the hooks of FSDP."""
    base = model.get_base_model()
    model.base_model.forward = lambda *args, **kwargs: base(*args, **kwargs)


def gather_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the complete tensor of a weight, which may be sharded. All ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def average_gradients(model: PeftModel) -> None:
    """Average the gradients of the adapter over all ranks, in place. All ranks must call it.

    A weight that a rank has not used counts as zero there: of an expert, for example, that got none of its tokens. A
    weight that no rank has used keeps no gradient, as in a single process.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    use_counts = collectives.all_reduce_sum(torch.tensor([weight.grad is not None for weight in weights]).int())
    gradients = [_get_gradient(weight) for weight, count in zip(weights, use_counts.tolist(), strict=True) if count]
    pending = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for gradient, work in zip(gradients, pending, strict=True):
        work.wait()
        gradient /= topology.world_size()


def _get_gradient(weight: torch.nn.Parameter) -> torch.Tensor:
    """Return the gradient of a weight, which is zero if there was none."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


@contextmanager
def keep_in_step(model: PeftModel, heartbeat: Heartbeat) -> Iterator[None]:
    """Let each rank call a sharded model as often as it needs in the block. All ranks must enter the block together.

    A forward pass needs the parts of all ranks. So before each pass, a rank waits until all ranks begin one or have
    left the block; those that have left it compute a pass of one token meanwhile. No gradients can be computed in the
    block. Without sharding, or with a single rank, this does nothing.

    If the block fails, the process must end, which ends the other ranks. A pass that has failed leaves them in its
    middle, so its error ends the block even if code in the block has handled it. Raises `OUT_OF_MEMORY`.
    """
    if not is_sharded(model) or topology.world_size() == 1:
        yield
        return
    follower, base = _Follower(model, heartbeat), model.get_base_model()
    hooks = (
        base.register_forward_pre_hook(follower.announce, prepend=True),
        base.register_forward_hook(follower.note_failure, always_call=True),
    )
    try:
        yield
        follower.follow()
    finally:
        for hook in hooks:
            hook.remove()


def _free_gathered_weights(model: PeftModel) -> None:
    """Free the complete weights that FSDP keeps after a forward pass, of the norm and the head.

    All ranks must have gathered the same weights when they begin a pass, and reading a state dict frees those of one
    rank.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@dataclass
class _Follower:
    """Coordinates the forward passes of the ranks."""

    model: PeftModel
    heartbeat: Heartbeat
    _is_following: bool = field(default=False, init=False)
    _failure: Exception | None = field(default=None, init=False)
    """The error of a pass that other ranks still compute."""
    _decoder_forward: object = field(init=False)

    def __post_init__(self) -> None:
        self._decoder_forward = self._decoder.forward

    @property
    def _decoder(self) -> torch.nn.Module:
        decoder: torch.nn.Module = self.model.get_base_model().base_model
        return decoder

    def announce(self, *_: object) -> None:
        """Wait until all ranks begin a forward pass.

        A pass with a replaced decoder computes only logits of earlier hidden states (`modeling.logits`), with weights
        that are still gathered.
        """
        if self._is_following or not self._has_own_decoder:
            return
        self._raise_failure()
        # No heartbeat meanwhile: the other ranks arrive soon, and one that does not is a stall.
        collectives.sum_when_ready(1, None)
        self.heartbeat()
        _free_gathered_weights(self.model)

    def note_failure(self, _module: torch.nn.Module, _args: object, output: object) -> None:
        """Keep the error of a pass that has just failed, which then has no output."""
        error = sys.exception()
        if output is None and isinstance(error, Exception) and self._has_own_decoder:
            self._failure = self._failure or error

    def follow(self) -> None:
        """Compute a pass of one token whenever another rank begins a pass, until all ranks have left the block."""
        self._raise_failure()
        self._is_following = True
        was_training = self.model.training
        self.model.eval()
        while collectives.sum_when_ready(0, self.heartbeat):  # the number of ranks that begin a pass
            _free_gathered_weights(self.model)
            with torch.no_grad():
                self.model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=self.model.device), use_cache=False)
        self.model.train(was_training)
        _free_gathered_weights(self.model)

    @property
    def _has_own_decoder(self) -> bool:
        """Whether the decoder is not replaced."""
        return bool(self._decoder.forward == self._decoder_forward)

    def _raise_failure(self) -> None:
        """Raise the error of a pass that has failed, if there is one: the other ranks cannot follow another pass."""
        if self._failure:
            with translate_memory_errors(_MEMORY_ADVICE):
                raise self._failure
