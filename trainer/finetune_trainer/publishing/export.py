"""Exports the adapter as servers load it: flat, as safetensors, without local paths; and checks that it loads."""

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
from finetune_trainer.records.adapter import AdapterInfo
from finetune_trainer.training.methods import get_method

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_RELOADED_ADAPTER = "check"
_LOGIT_TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Largest difference of a logit between the adapter in memory and on disk, by precision. Stored weights are the same,
so that only the order of sums differs."""


GENERATION_CONFIG_NAME = "generation_config.json"


def export_adapter(
    config: TrainerConfig, loaded: LoadedModel, target: Path, model_revision: str, model_dir: Path
) -> None:
    """Write adapter, tokenizer, chat template and generation config to the folder `target`, without subfolders.

    `model_revision` is the commit or digest of the base model in `model_dir`. Raises `MODEL_UNSUPPORTED` if
    the adapter differs after it is loaded from `target`, and `INTERNAL_ERROR` if training did not change it, or if its
    logits differ although its weights are the same.
    """
    target.mkdir(parents=True, exist_ok=True)
    check_adapter_trained(loaded.model)
    # save_embedding_layers="auto" asks the hub whether the vocabulary has grown, which it never does here.
    loaded.model.save_pretrained(str(target), save_embedding_layers=False)
    (target / "README.md").unlink()  # a template of PEFT with the local path of the base model
    export_tokenizer(loaded.tokenizer, target)
    export_generation_config(loaded.model, loaded.tokenizer, model_dir, target)
    _make_config_portable(target / "adapter_config.json", config, model_revision, list_target_modules(loaded.model))
    _check_reloaded_logits(loaded, target, resolve_precision(config))


def get_base_model_name(config: TrainerConfig) -> str:
    """Return the name of the base model for PEFT and servers: its name on the hub if it is known, otherwise the URI."""
    return config.output.base_model_name or config.model.uri.removeprefix("hf://")


def list_target_modules(model: PeftModel) -> list[str]:
    """Return the adapted modules by the last part of their names, as servers expect, or by path if that is ambiguous.

    PEFT stores `all-linear` as the paths that it found, or in a shorter form, depending on their number.
    """
    paths = set(model.base_model.targeted_module_names)
    names = {path.rsplit(".", 1)[-1] for path in paths}
    matching_paths = {path for path, _ in model.get_base_model().named_modules() if path.rsplit(".", 1)[-1] in names}
    return sorted(names if matching_paths == paths else paths)


def _make_config_portable(path: Path, config: TrainerConfig, model_revision: str, targets: list[str]) -> None:
    """Replace local values in an `adapter_config.json`, such as the path of the base model, by public ones."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    name = get_base_model_name(config)
    settings["base_model_name_or_path"] = name
    settings["revision"] = model_revision if config.model.uri == f"hf://{name}" else None
    settings["auto_mapping"] = None  # Unsloth sets a class of its own
    settings["target_modules"] = targets
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def export_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer and its chat template. Its EOS token is the one that ends answers in the training data.

    Only the name of the EOS token changes, not the vocabulary. Options with which transformers loaded the tokenizer are
    removed.
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
    """Write the generation config of the base model with the tokens that end an answer.

    Other settings are kept, or consist of token IDs if the base model has no generation config. transformers does not
    write it, since it rejects settings of many models, such as a temperature without `do_sample`.
    """
    path = model_dir / GENERATION_CONFIG_NAME
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.pop("_from_model_config", None)  # it now differs from what config.json implies
    else:
        token_ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
        settings = {key: value for key, value in token_ids.items() if value is not None}
    _write_json(folder / GENERATION_CONFIG_NAME, settings | {"eos_token_id": collect_end_token_ids(model, tokenizer)})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_adapter_trained(model: PeftModel) -> None:
    """Raise unless training changed the adapter: the B matrices of LoRA start at zero. All trained weights must be
    finite."""
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not all(bool(weight.isfinite().all()) for weight in trainable.values()):
        raise TrainerError(Reason.NON_FINITE_LOSS, "the weights of the adapter are not finite")
    if not any(bool(weight.any()) for name, weight in trainable.items() if ".lora_B." in name):
        raise TrainerError(Reason.INTERNAL_ERROR, "training did not change the adapter: its B matrices are all zero")


def _check_reloaded_logits(loaded: LoadedModel, target: Path, precision: str) -> None:
    """Load the adapter from disk in addition to the one in memory, and compare their logits."""
    model = loaded.model
    model.eval()
    memory_logits = compute_probe_logits(model, precision)
    model.load_adapter(str(target), adapter_name=_RELOADED_ADAPTER)
    try:
        _check_restored_modules(model)
        model.set_adapter(_RELOADED_ADAPTER)
        disk_logits = compute_probe_logits(model, precision)
    finally:
        model.set_adapter("default")
        model.delete_adapter(_RELOADED_ADAPTER)
    difference = float((memory_logits - disk_logits).abs().max())
    if not difference <= _LOGIT_TOLERANCES[precision]:
        raise TrainerError(
            Reason.INTERNAL_ERROR,
            f"the adapter differs after it is loaded from disk: a logit differs by {difference:g}",
        )
    log.info("export: loaded the adapter from disk, logits differ by at most %g", difference)


def _check_restored_modules(model: PeftModel) -> None:
    """Raise `MODEL_UNSUPPORTED` if weights differ after they are loaded. The preflight found none that do."""
    from finetune_trainer.modeling.adapter_reload import describe_modules, find_unrestored_modules

    modules = find_unrestored_modules(model, _RELOADED_ADAPTER)
    if modules:
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"the adapter of {len(modules)} modules differs after it is loaded from disk: {describe_modules(modules)}; "
            "set training.lora.targetModules to other modules",
        )


def compute_probe_logits(model: PreTrainedModel, precision: str) -> torch.Tensor:
    """Return the logits of a few arbitrary tokens, shape (2, 16, vocabulary)."""
    import torch

    tokens = (torch.arange(32) * 7919 % model.config.get_text_config().vocab_size).reshape(2, 16)
    with torch.no_grad(), autocast_like_training(model.device, precision):
        logits: torch.Tensor = model(input_ids=tokens.to(model.device), use_cache=False).logits
    return logits.float()


def collect_adapter_info(config: TrainerConfig, loaded: LoadedModel) -> AdapterInfo:
    """Return properties of the adapter that only the loaded model knows, for the report."""
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
