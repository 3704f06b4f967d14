"""Loads tokenizer, base model and adapter with the chosen backend. Heavy imports happen inside functions."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import PROCESSES_ENV, ModelSource, Reason, TrainerConfig
from finetune_trainer.data.template_settings import apply_template_settings
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import existing_adapter, kernels, quantization, stored_quantization
from finetune_trainer.modeling.library_errors import translate_memory_errors, translate_model_errors
from finetune_trainer.modeling.lora import add_adapter
from finetune_trainer.modeling.model_config import choose_model_class
from finetune_trainer.modeling.precision import get_dtype, resolve_precision

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin

log = logging.getLogger(__name__)

_PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|PAD_TOKEN|>", "<|finetune_right_pad_id|>", "<|vision_pad|>")
"""Names of padding tokens in vocabularies whose tokenizer config does not define one."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for training, its tokenizer, and the backend that loaded it."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    backend: str


def load_tokenizer(model_dir: Path, settings: ModelSource | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer, which pads on the right with a token other than EOS. Without `settings` it keeps its chat
    template as it is.

    Raises `MODEL_INVALID`, and `CONFIG_INVALID` for settings of the chat template that are not valid.
    """
    from transformers import AutoTokenizer

    with translate_model_errors("the base model's tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            str(model_dir), trust_remote_code=False, local_files_only=True, padding_side="right"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _choose_pad_token(tokenizer)
    if settings is not None:
        apply_template_settings(tokenizer, settings)
    return tokenizer


def _choose_pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a padding token of the vocabulary other than EOS: further fine-tuning would mask EOS together with the
    padding, and the model would never stop (https://github.com/unslothai/unsloth/issues/416). A new token would need a
    new row in the embedding."""
    special = sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    in_use = {tokenizer.eos_token, tokenizer.bos_token}
    names = [*(name for name in _PAD_TOKENS if name in tokenizer.get_vocab()), tokenizer.unk_token, *special]
    candidates = [name for name in names if name is not None and name not in in_use]
    if not candidates and tokenizer.eos_token is None:
        raise TrainerError(Reason.MODEL_INVALID, "the base model's tokenizer has neither an EOS nor a padding token")
    return str(candidates[0] if candidates else tokenizer.eos_token)  # the trainer's labels do not depend on it


def load_with_tokenizer(
    config: TrainerConfig, model_dir: Path, backend: str, adapter_dir: Path | None = None
) -> LoadedModel:
    """Load the base model with an adapter as `load_model` does, and its tokenizer. Raises as `load_model`."""
    tokenizer = load_tokenizer(model_dir, config.model)
    return LoadedModel(load_model(config, model_dir, backend, adapter_dir), tokenizer, backend)


def load_model(config: TrainerConfig, model_dir: Path, backend: str, adapter_dir: Path | None = None) -> PeftModel:
    """Load the frozen base model in the precision of the run, with the adapter in `adapter_dir`, or a new one that is
    initialized from `training.seed`.

    Raises `MODEL_INVALID` for invalid files, `CONFIG_INVALID` for a precision or target modules that are not supported,
    and `OUT_OF_MEMORY`.
    """
    import torch

    if torch.cuda.device_count() > 1:  # transformers would split batches over all GPUs
        count = torch.cuda.device_count()
        message = (
            f"{count} GPUs are visible to one process: set {PROCESSES_ENV}={count} to use all, or CUDA_VISIBLE_DEVICES"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
    dtype = get_dtype(resolve_precision(config))
    if adapter_dir is not None:
        existing_adapter.check_adapter(config, adapter_dir)
    with translate_memory_errors("load the base model; provide more memory or use a smaller model"):
        model = _load_with_backend(backend, config, model_dir, dtype)
        if adapter_dir is not None:
            existing_adapter.load_adapter_weights(model, adapter_dir)
    return model


def _load_with_backend(backend: str, config: TrainerConfig, model_dir: Path, dtype: torch.dtype) -> PeftModel:
    if backend == "unsloth":
        from finetune_trainer.modeling import unsloth_backend

        return unsloth_backend.load_with_adapter(config, model_dir, dtype)
    return _load_with_transformers(config, model_dir, dtype)


def load_base_model(config: TrainerConfig, model_dir: Path, backend: str) -> PreTrainedModel:
    """Load the base model without an adapter, in the precision of the run. Raises as `load_model`."""
    dtype = get_dtype(resolve_precision(config))
    if backend == "unsloth":
        from finetune_trainer.modeling import unsloth_backend

        return unsloth_backend.load_base_model(config, model_dir, dtype)
    return _load_base_with_transformers(config, model_dir, dtype)


def _load_with_transformers(config: TrainerConfig, model_dir: Path, dtype: torch.dtype) -> PeftModel:
    from transformers import set_seed

    base = _load_base_with_transformers(config, model_dir, dtype)
    if config.training.kernels == "liger":
        kernels.apply_liger_kernels(config, base)
    set_seed(config.training.seed)
    model = add_adapter(config, base, model_dir)
    if topology.is_sharded():
        from finetune_trainer.modeling.sharding import call_base_with_hooks

        call_base_with_hooks(model)
    return model


def _load_base_with_transformers(config: TrainerConfig, model_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    model_config = stored_quantization.load_checked_config(config, model_dir)
    is_stored_quantized = stored_quantization.get_stored_method(model_config) is not None
    quantization_config = (
        stored_quantization.build_dequantization_config(model_config)
        if is_stored_quantized
        else quantization.build_quantization_config(config, dtype)
    )
    if topology.is_sharded():
        return _load_sharded_base(model_dir, model_config, dtype)
    base, info = load_weights(model_dir, model_config, dtype, quantization_config)
    check_loading_info(base, info)
    if is_stored_quantized:
        stored_quantization.convert_to_run_precision(base, dtype)
    # PEFT's prepare_model_for_kbit_training is not called: it would only convert norms and embeddings to 32 bits.
    quantization.check_quantization(config, base, "transformers")
    return base


def _load_sharded_base(model_dir: Path, model_config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    from finetune_trainer.modeling import sharding

    base, info = load_weights(model_dir, model_config, dtype, None, sharding.build_loading_arguments())
    check_loading_info(base, info)
    sharding.shard_loaded_model(base)
    return base


def load_weights(
    model_dir: Path,
    model_config: PreTrainedConfig,
    dtype: torch.dtype,
    quantization_config: QuantizationConfigMixin | None,
    placement: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the class that config.json names. Return it with the loading info.

    `placement` are the arguments that say where the weights are loaded to, by default the GPU if there is one.
    """
    import torch

    model_class = choose_model_class(model_config)
    with translate_model_errors():
        base, info = model_class.from_pretrained(
            str(model_dir),
            config=model_config,
            dtype=dtype,
            quantization_config=quantization_config,
            **(placement or {"device_map": {"": 0} if torch.cuda.is_available() else None}),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported in the loading info, as invalid files
            output_loading_info=True,
        )
    return base, info


def check_loading_info(base: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Raise `MODEL_INVALID` if weights are missing or have another shape, which transformers initializes randomly, or
    if the weights have more layers than config.json."""
    surplus = _find_surplus_layer(base.state_dict(), info["unexpected_keys"])
    if surplus:
        message = (
            f"the base model does not match its config.json: it has weights of the layer {surplus}, beyond the number "
            "of layers in its config.json; correct that number"
        )
        raise TrainerError(Reason.MODEL_INVALID, message)
    if info["unexpected_keys"]:  # such as the heads that predict several tokens at once
        names = sorted(map(str, info["unexpected_keys"]))
        log.warning("the base model has %d weights that its class does not use, such as %s", len(names), names[0])
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            problem = (
                f"{len(info[kind])} {kind.replace('_keys', '')} weights, such as {sorted(map(str, info[kind]))[0]}"
            )
            raise TrainerError(Reason.MODEL_INVALID, f"the base model does not match its config.json: {problem}")


def _find_surplus_layer(names: Iterable[str], unexpected_names: Iterable[str]) -> str | None:
    """Return the first layer of the unexpected weights that has a higher number than the layers of the model, and the
    same weights as some of them.

    Layers that predict several tokens at once have weights of their own, or transformers does not report them.
    """
    own_numbers: dict[str, set[int]] = defaultdict(set)
    own_weights: dict[str, set[str]] = defaultdict(set)
    for prefix, number, weight in _split_layer_names(names):
        own_numbers[prefix].add(number)
        own_weights[prefix].add(weight)
    layers: dict[tuple[str, int], set[str]] = defaultdict(set)
    for prefix, number, weight in _split_layer_names(unexpected_names):
        layers[prefix, number].add(weight)
    for (prefix, number), weights in sorted(layers.items()):
        if number > max(own_numbers[prefix], default=number) and weights <= own_weights[prefix]:
            return f"{prefix}{number}"
    return None


def _split_layer_names(names: Iterable[str]) -> Iterator[tuple[str, int, str]]:
    """Yield path, number and weight of the names that have them: `model.layers.`, 0 and `mlp.up_proj.weight`."""
    for match in map(re.compile(r"(.*?\.)(\d+)\.(.+)").fullmatch, map(str, names)):
        if match:
            yield match[1], int(match[2]), match[3]


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, embedding_rows: int) -> None:
    """Raise `MODEL_INVALID` if the tokenizer has a token beyond the `embedding_rows` rows of the model's embedding. An
    embedding may have unused rows."""
    token, token_id = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if token_id >= embedding_rows:
        message = (
            f"the base model has embeddings for {embedding_rows} tokens, but the token {token!r} of its tokenizer has "
            f"the ID {token_id}; resize the embeddings of the model, or remove the token from the tokenizer"
        )
        raise TrainerError(Reason.MODEL_INVALID, message)
