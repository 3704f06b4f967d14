"""The base model with a fresh LoRA adapter, by either backend. Heavy imports happen inside functions."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import PROCESSES_ENV, SCRATCH_ENV, Reason, TrainerConfig
from finetune_trainer.data.chat_template import template_errors
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import adapters, quantization
from finetune_trainer.modeling.import_guard import hide_optional_packages
from finetune_trainer.modeling.library_errors import translate_memory_errors, translate_model_errors
from finetune_trainer.modeling.lora import add_adapter
from finetune_trainer.modeling.precision import get_dtype, resolve_precision

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|PAD_TOKEN|>", "<|finetune_right_pad_id|>", "<|vision_pad|>")
"""Names under which vocabularies hold a padding token that the tokenizer's config does not mention."""
_UNSLOTH_METHODS = ("sft",)
"""Methods for which Unsloth's kernels were compared with transformers on a GPU, so that `auto` may choose them."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be trained, its tokenizer and the backend that loaded it."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    backend: str


def _set_library_environment() -> None:
    """Settings that libraries read once, when they are loaded; what the environment already says stands."""
    # A thread of OpenMP's that waits spins by default. Where cores are shared or a quota is set, which is any pod on
    # a CPU, the spinning takes the time of the thread that is waited for: training was two to five times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def choose_backend(config: TrainerConfig) -> str:
    """`unsloth` or `transformers`; logs why. Raises `CONFIG_INVALID` if Unsloth is asked for and not installed."""
    _set_library_environment()
    requested, is_installed = config.training.backend, importlib.util.find_spec("unsloth") is not None
    if requested == "unsloth" and not is_installed:
        message = "training.backend is unsloth, which is not installed here; use an image that has it, or auto"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    if requested == "unsloth" and topology.world_size() > 1:
        message = "training.backend unsloth trains in one process; take transformers or auto, or one GPU on one node"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    backend, reason = (requested, "asked for") if requested != "auto" else _choose_automatically(config, is_installed)
    log.info("backend %s: %s", backend, reason)
    return backend


def _choose_automatically(config: TrainerConfig, is_installed: bool) -> tuple[str, str]:
    """What `auto` takes, and why. Of Unsloth's kernels only those for `sft` were compared with transformers' on a GPU,
    and nothing else than transformers' own attention is known to keep packed rows apart."""
    import torch

    training = config.training
    if topology.world_size() > 1:
        return "transformers", f"{topology.world_size()} workers train together"
    if training.packing or training.method not in _UNSLOTH_METHODS:
        setting = "training.packing" if training.packing else f"method {training.method}"
        return "transformers", f"auto takes it for {setting}, with a GPU or without"
    if config.model.quantization == "int8":
        return "transformers", "auto takes it for int8, with a GPU or without"
    if not torch.cuda.is_available():
        return "transformers", "there is no GPU"
    return ("unsloth", "there is a GPU") if is_installed else ("transformers", "unsloth is not installed")


def import_backend(backend: str, quantization: str = "none") -> None:
    """Import the libraries in the one order that works; takes seconds, so call it while data is downloaded."""
    _set_library_environment()
    with hide_optional_packages(backend, quantization):
        _import_libraries(backend)


def _import_libraries(backend: str) -> None:
    if backend == "unsloth":
        # By default it writes what it compiles into the working directory, which is read-only in a pod, and asks the
        # hub for a file at each load, to be counted.
        scratch = os.environ.get(SCRATCH_ENV, tempfile.gettempdir())
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", os.path.join(scratch, "unsloth_compiled_cache"))
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        # It patches transformers, TRL and PEFT, so it has to be imported before them.
        importlib.import_module("finetune_trainer.modeling.unsloth_backend")
    for name in ("torch", "datasets", "transformers", "peft", "trl", "trl.trainer.sft_trainer"):
        importlib.import_module(name)
    from peft.import_utils import is_bnb_4bit_available, is_torchao_available
    from transformers.utils import logging as transformers_logging

    for cached_check in (is_bnb_4bit_available, is_torchao_available):  # and remembered; else as adapters are made
        cached_check()

    transformers_logging.disable_progress_bar()  # a bar is hundreds of lines in a pod's log


def load_tokenizer(model_dir: Path, template: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the right with a token other than EOS, its chat template replaced by `template`
    if there is one. Raises `MODEL_INVALID`, and `CONFIG_INVALID` for a template that is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(model_dir), trust_remote_code=False, local_files_only=True, padding_side="right"
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise TrainerError(Reason.MODEL_INVALID, f"the base model's tokenizer cannot be loaded: {error}") from error
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _choose_pad_token(tokenizer)
    if template is not None:
        _check_template(tokenizer, template)
        tokenizer.chat_template = template
    return tokenizer


def _check_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    from jinja2 import TemplateSyntaxError

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], chat_template=template, tokenize=False)
    except TemplateSyntaxError as error:
        message = f"model.chatTemplate is no Jinja template: {error.message} (its line {error.lineno})"
        raise TrainerError(Reason.CONFIG_INVALID, message) from error
    except template_errors():
        pass  # it may refuse this conversation; what it makes of the data's is checked row by row


def _choose_pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A token of the vocabulary to pad with, not EOS: who tunes on would mask EOS away with the padding, and the
    model never stop (unslothai/unsloth#416). A new token would need a new row in the embedding."""
    special = sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    in_use = {tokenizer.eos_token, tokenizer.bos_token}
    names = [*(name for name in _PAD_TOKENS if name in tokenizer.get_vocab()), tokenizer.unk_token, *special]
    candidates = [name for name in names if name is not None and name not in in_use]
    if not candidates and tokenizer.eos_token is None:
        raise TrainerError(Reason.MODEL_INVALID, "the base model's tokenizer has neither an EOS nor a padding token")
    return str(candidates[0] if candidates else tokenizer.eos_token)  # our own labels do not depend on it


def load_model(config: TrainerConfig, model_dir: Path, backend: str, adapter_dir: Path | None = None) -> PeftModel:
    """The base model in the run's precision, frozen, with a new adapter that starts from `training.seed`, or with the
    one in `adapter_dir`.

    Raises `MODEL_INVALID` for files that are no such model, `CONFIG_INVALID` for a precision that this machine or
    target modules that this model does not have, `OUT_OF_MEMORY`.
    """
    import torch

    if torch.cuda.device_count() > 1:  # transformers would put the model on one and split batches over all
        count = torch.cuda.device_count()
        message = f"{count} GPUs are visible, one is used: set {PROCESSES_ENV}={count} for all, or CUDA_VISIBLE_DEVICES"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    dtype = get_dtype(resolve_precision(config))
    if adapter_dir is not None:
        adapters.check_adapter(config, adapter_dir)
    with translate_memory_errors("load the base model; give it more memory or take a smaller model"):
        model = _load_with_backend(backend, config, model_dir, dtype)
        if adapter_dir is not None:
            adapters.load_adapter_weights(model, adapter_dir)
    return model


def _load_with_backend(backend: str, config: TrainerConfig, model_dir: Path, dtype: torch.dtype) -> PeftModel:
    if backend == "unsloth":
        from finetune_trainer.modeling import unsloth_backend

        return unsloth_backend.load_with_adapter(config, model_dir, dtype)
    return _load_with_transformers(config, model_dir, dtype)


def load_base_model(config: TrainerConfig, model_dir: Path, backend: str) -> PreTrainedModel:
    """The model in `model_dir` alone, in the run's precision. Raises as `load_model`."""
    dtype = get_dtype(resolve_precision(config))
    if backend == "unsloth":
        from finetune_trainer.modeling import unsloth_backend

        return unsloth_backend.load_base_model(config, model_dir, dtype)
    return _load_base_with_transformers(config, model_dir, dtype)


def _load_with_transformers(config: TrainerConfig, model_dir: Path, dtype: torch.dtype) -> PeftModel:
    from transformers import set_seed

    base = _load_base_with_transformers(config, model_dir, dtype)
    set_seed(config.training.seed)
    return add_adapter(config, base)


def _load_base_with_transformers(config: TrainerConfig, model_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    with translate_model_errors():
        base, info = AutoModelForCausalLM.from_pretrained(
            str(model_dir),
            dtype=dtype,
            quantization_config=quantization.build_quantization_config(config, dtype),
            device_map={"": 0} if torch.cuda.is_available() else None,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are in the info, and there told apart from a bug
            output_loading_info=True,
        )
    check_loading_info(info)
    # PEFT's prepare_model_for_kbit_training is not called: all it would add is norms and embeddings in 32 bits.
    quantization.check_quantization(config, base)
    model: PreTrainedModel = base
    return model


def check_loading_info(info: Mapping[str, Any]) -> None:
    """Raise `MODEL_INVALID` if weights are missing or of another shape: transformers makes random ones up for them."""
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            problem = (
                f"{len(info[kind])} {kind.replace('_keys', '')} weights, such as {sorted(map(str, info[kind]))[0]}"
            )
            raise TrainerError(Reason.MODEL_INVALID, f"the base model does not match its config.json: {problem}")


def load_model_config(model_dir: Path) -> PreTrainedConfig:
    """What config.json says of the model. Raises `MODEL_INVALID` for what transformers does not know."""
    from transformers import AutoConfig

    with translate_model_errors():
        return AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False, local_files_only=True)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, embedding_rows: int) -> None:
    """Raise `MODEL_INVALID` if the tokenizer has a token for which the model, with so many rows in its embedding, has
    none. An embedding may have rows to spare."""
    token, token_id = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if token_id >= embedding_rows:
        message = (
            f"the base model has embeddings for {embedding_rows} tokens, but its tokenizer's token {token!r} "
            "has the number "
            f"{token_id}, counted from 0: resize the model's embeddings, or remove the token from the tokenizer"
        )
        raise TrainerError(Reason.MODEL_INVALID, message)
