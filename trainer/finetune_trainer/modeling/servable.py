"""Which inference servers load the adapter of a run, and why others do not.

`servers.json` has the architectures that the servers support; `tests/matrix/servers.py` writes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

from finetune_trainer.contract import Servable, TrainerConfig

SERVERS_PATH = Path(__file__).with_name("servers.json")
YES = "Yes"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank` that are useful: `vllm.config.lora.MaxLoRARanks` without 1."""
VLLM_DEFAULT_RANK = 16
_MERGED = "serve the merged model (output.merged: true)"


class _VllmRecord(TypedDict):
    version: str
    lora: list[str]
    noLora: list[str]


class _LlamaCppRecord(TypedDict):
    version: str
    architectures: list[str]


class ServersRecord(TypedDict):
    """Content of `servers.json`."""

    vllm: _VllmRecord
    llamaCpp: _LlamaCppRecord
    families: dict[str, str]
    """Architecture of each family of the support matrix, as `config.json` names it."""


@dataclass(frozen=True)
class _Feature:
    """A feature of adapters, and how the servers treat it. An empty text means that they load it."""

    vllm: str
    llama_cpp: str


_FEATURES = {
    # vllm/lora/peft_helper.py rejects it; llama.cpp's converter ends at its magnitude vectors.
    "dora": _Feature(
        f"No: vLLM does not load DoRA; {_MERGED}, or train with training.lora.variant lora.",
        f"No: llama.cpp does not load DoRA; {_MERGED}, or train with training.lora.variant lora.",
    ),
    # convert_lora_to_gguf.py writes lora_alpha alone, and llama.cpp scales by alpha / rank.
    "rslora": _Feature(
        "", "Yes, as GGUF of finetune-trainer export: the converter of llama.cpp ignores the scaling of rslora."
    ),
    # Neither vllm/lora/utils.py nor convert_lora_to_gguf.py knows the names of the trained rows.
    "tokens": _Feature(
        f"No: vLLM does not load trained tokens; {_MERGED}, or remove training.lora.trainableTokens.",
        f"No: llama.cpp does not load trained tokens; {_MERGED}, or remove training.lora.trainableTokens.",
    ),
    "parameters": _Feature(
        f"Unknown: adapters of experts (training.lora.targetParameters) were not tested with vLLM; {_MERGED}.",
        f"Unknown: adapters of experts (training.lora.targetParameters) were not tested with llama.cpp; {_MERGED}.",
    ),
}


@cache
def load_servers() -> ServersRecord:
    """Return what is known of the servers."""
    record: ServersRecord = json.loads(SERVERS_PATH.read_bytes())
    return record


def read_architecture(model_dir: Path) -> str:
    """Return the class that the `config.json` of a base model names; empty if it names none."""
    settings = json.loads((model_dir / "config.json").read_bytes())
    names = settings.get("architectures") or [""]
    return str(names[0])


def describe_servable(config: TrainerConfig, architecture: str) -> Servable:
    """Say for each server whether it loads the adapter of a config on a base model of this architecture."""
    features = [_FEATURES[name] for name in _list_features(config)]
    return Servable(
        vllm=next((each.vllm for each in features if each.vllm), None) or _describe_vllm(config, architecture),
        llama_cpp=_describe_llama_cpp(features, architecture),
        peft=YES,
    )


def choose_vllm_rank(rank: int) -> int:
    """Return the smallest value of `--max-lora-rank` that vLLM accepts for a rank."""
    return next((limit for limit in VLLM_RANKS if rank <= limit), rank)


def has_public_base_name(config: TrainerConfig) -> bool:
    """Return whether `adapter_config.json` has the name of the base model on the hub, which vLLM's resolvers compare
    with the model that they serve."""
    return bool(config.output.base_model_name) or config.model.uri.startswith("hf://")


def describe_vllm_family(architecture: str) -> str:
    """Say whether vLLM loads adapters for an architecture."""
    vllm = load_servers()["vllm"]
    if architecture in vllm["lora"]:
        return YES
    if architecture in vllm["noLora"]:
        return f"No: vLLM {vllm['version']} has no LoRA support for {_shorten(architecture)}; {_MERGED}."
    return (
        f"Unknown: vLLM {vllm['version']} has no model of its own for {_shorten(architecture)}; test its Transformers "
        f"backend, or {_MERGED}."
    )


def describe_llama_cpp_family(architecture: str) -> str:
    """Say whether llama.cpp converts adapters for an architecture."""
    record = load_servers()["llamaCpp"]
    if architecture in record["architectures"]:
        return f"{YES}, as GGUF"
    return (
        f"No: llama.cpp (llama-cpp-python {record['version']}) has no converter for {_shorten(architecture)}; use "
        "another server."
    )


def _list_features(config: TrainerConfig) -> list[str]:
    """Return the features of the adapter that not every server loads."""
    lora = config.training.lora
    is_used = {
        lora.variant: lora.variant != "lora",
        "tokens": bool(lora.trainable_tokens),
        "parameters": bool(lora.target_parameters),
    }
    return [name for name, is_set in is_used.items() if is_set]


def _describe_vllm(config: TrainerConfig, architecture: str) -> str:
    family, rank = describe_vllm_family(architecture), config.training.lora.rank
    if family != YES:
        return family
    if rank > VLLM_RANKS[-1]:
        return f"No: the rank {rank} is above vLLM's maximum of {VLLM_RANKS[-1]}; {_MERGED}."
    flag = f", with --max-lora-rank {choose_vllm_rank(rank)}" if rank > VLLM_DEFAULT_RANK else ""
    note = "" if has_public_base_name(config) else "; for its resolvers set output.baseModelName"
    return f"{YES}{flag}{note}"


def _describe_llama_cpp(features: list[_Feature], architecture: str) -> str:
    family = describe_llama_cpp_family(architecture)
    if not family.startswith(YES):
        return family
    texts = sorted((each.llama_cpp for each in features if each.llama_cpp), key=lambda text: text.startswith(YES))
    return texts[0] if texts else family


def _shorten(architecture: str) -> str:
    """Return the name of an architecture at a bounded length, since it comes from a file."""
    return architecture[:80] or "a config.json without architectures"
