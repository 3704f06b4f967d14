"""Write the adapter as servers load it: flat, safetensors, no path of this machine; and prove that it loads."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data.end_of_turn import choose_published_eos_token
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.generation import collect_end_token_ids
from finetune_trainer.modeling.loading import LoadedModel
from finetune_trainer.modeling.precision import autocast_like_training, resolve_precision
from finetune_trainer.reporting.adapter_info import AdapterInfo
from finetune_trainer.training.methods import get_method

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_RELOADED_ADAPTER = "check"
_LOGIT_TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Largest difference of a logit between the adapter in memory and on disk, by precision. The weights are stored as they
are, so that the only difference is in the order of sums."""


GENERATION_CONFIG_NAME = "generation_config.json"


def export_adapter(
    config: TrainerConfig, loaded: LoadedModel, target: Path, model_revision: str, model_dir: Path
) -> None:
    """Write adapter, tokenizer, chat template and generation config into the folder `target`, flat.

    `model_revision` is the base model's commit or digest, `model_dir` holds its files. Raises `INTERNAL_ERROR` if the
    adapter learnt nothing or answers differently when it is loaded from `target`.
    """
    target.mkdir(parents=True, exist_ok=True)
    check_adapter_trained(loaded.model)
    # save_embedding_layers: "auto" asks the hub whether the vocabulary grew; ours never does.
    loaded.model.save_pretrained(str(target), save_embedding_layers=False)
    (target / "README.md").unlink()  # a stub of PEFT's that names where the base model lay on this machine
    export_tokenizer(loaded.tokenizer, target)
    export_generation_config(loaded.model, loaded.tokenizer, model_dir, target)
    _make_config_portable(target / "adapter_config.json", config, model_revision, list_target_modules(loaded.model))
    _check_reloaded_logits(loaded, target, resolve_precision(config))


def get_base_model_name(config: TrainerConfig) -> str:
    """What PEFT and servers look for: a hub name without its scheme, else the URI."""
    return config.model.uri.removeprefix("hf://")


def list_target_modules(model: PeftModel) -> list[str]:
    """The adapted modules by their last names, as servers look for them, where those say it all; else by path.

    PEFT stores `all-linear` as the paths that it found, or shorter, depending on how many they are.
    """
    paths = set(model.base_model.targeted_module_names)
    names = {path.rsplit(".", 1)[-1] for path in paths}
    matching_paths = {path for path, _ in model.get_base_model().named_modules() if path.rsplit(".", 1)[-1] in names}
    return sorted(names if matching_paths == paths else paths)


def _make_config_portable(path: Path, config: TrainerConfig, model_revision: str, targets: list[str]) -> None:
    """Put the base model's public name into an `adapter_config.json` in place of where it lay on this machine."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = get_base_model_name(config)
    settings["revision"] = model_revision if config.model.uri.startswith("hf://") else None
    settings["auto_mapping"] = None  # Unsloth writes its own class into it, which nobody else has
    settings["target_modules"] = targets
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def export_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer and its chat template; its EOS token is the one that ends the answers that were trained on.

    Only the name of the EOS token is changed, not the vocabulary. What transformers stores of how it was told to load
    the tokenizer is left out.
    """
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    portable_settings = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}
    if (eos_token := choose_published_eos_token(tokenizer)) != tokenizer.eos_token:
        portable_settings["eos_token"] = eos_token
    _write_json(path, portable_settings)


def export_generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_dir: Path, folder: Path
) -> None:
    """Write the base model's generation config with the tokens that end an answer.

    The rest of it is kept as it is, or made of the tokens' ids if the base model has none. It is not written by
    transformers, which refuses to store what many models bring, such as a temperature without `do_sample`.
    """
    path = model_dir / GENERATION_CONFIG_NAME
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.pop("_from_model_config", None)  # it is no longer what config.json alone says
    else:
        token_ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
        settings = {key: value for key, value in token_ids.items() if value is not None}
    _write_json(folder / GENERATION_CONFIG_NAME, settings | {"eos_token_id": collect_end_token_ids(model, tokenizer)})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_adapter_trained(model: PeftModel) -> None:
    """LoRA's B matrices start at zero: if all still are, or one holds no number, the adapter is worth nothing."""
    weights = [weight for name, weight in model.named_parameters() if ".lora_B." in name]
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise TrainerError(Reason.NON_FINITE_LOSS, "the adapter's weights are no finite numbers")
    if not any(bool(weight.any()) for weight in weights):
        raise TrainerError(Reason.INTERNAL_ERROR, "the adapter learnt nothing: its B matrices are all zero")


def _check_reloaded_logits(loaded: LoadedModel, target: Path, precision: str) -> None:
    """Load the adapter from disk beside the one in memory, which costs its size only, and compare their logits."""
    model = loaded.model
    model.eval()
    memory_logits = compute_probe_logits(model, precision)
    model.load_adapter(str(target), adapter_name=_RELOADED_ADAPTER)
    try:
        model.set_adapter(_RELOADED_ADAPTER)
        disk_logits = compute_probe_logits(model, precision)
    finally:
        model.set_adapter("default")
        model.delete_adapter(_RELOADED_ADAPTER)
    difference = float((memory_logits - disk_logits).abs().max())
    if not difference <= _LOGIT_TOLERANCES[precision]:
        raise TrainerError(
            Reason.INTERNAL_ERROR, f"the adapter loaded from disk answers differently: a logit is off by {difference:g}"
        )
    log.info("the adapter loads from disk, logits differ by at most %g", difference)


def compute_probe_logits(model: PreTrainedModel, precision: str) -> torch.Tensor:
    """Logits for a few arbitrary tokens, shape (2, 16, vocabulary)."""
    import torch

    tokens = (torch.arange(32) * 7919 % model.config.get_text_config().vocab_size).reshape(2, 16)
    with torch.no_grad(), autocast_like_training(model.device, precision):
        logits: torch.Tensor = model(input_ids=tokens.to(model.device), use_cache=False).logits
    return logits.float()


def collect_adapter_info(config: TrainerConfig, loaded: LoadedModel) -> AdapterInfo:
    """What only the model itself knows of its adapter, for the report."""
    trainable, total = loaded.model.get_nb_trainable_parameters()
    names = tuple(list_target_modules(loaded.model))
    method = get_method(config)
    return AdapterInfo(
        get_base_model_name(config),
        trainable,
        total,
        resolve_precision(config),
        names,
        method.title,
        config.training.beta if method.beta_applies else None,
    )
