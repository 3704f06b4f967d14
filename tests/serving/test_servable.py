"""What a result says of inference servers, for the settings that they do not support."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.trainer.run_records import CONFIG

from finetune_trainer.contract import Servable, TrainerConfig
from finetune_trainer.modeling.servable import describe_servable, load_servers
from finetune_trainer.records.manifest import AdapterManifest

LLAMA = "LlamaForCausalLM"
MERGED = "serve the merged model (output.merged: true)"


def describe(architecture: str = LLAMA, model: str = "hf://org/base-1b", **lora: Any) -> Servable:
    fields = {**CONFIG, "model": {"uri": model, "maxLength": 64}, "training": {"epochs": 1, "lora": lora}}
    return describe_servable(TrainerConfig.model_validate(fields), architecture)


@pytest.mark.parametrize(
    ("lora", "vllm", "llama_cpp"),
    [
        ({}, "Yes", "Yes, as GGUF"),
        ({"rank": 17}, "Yes, with --max-lora-rank 32", "Yes, as GGUF"),
        ({"rank": 64}, "Yes, with --max-lora-rank 64", "Yes, as GGUF"),
        ({"variant": "rslora"}, "Yes", "Yes, as GGUF of finetune-trainer export"),
        ({"variant": "dora"}, f"No: vLLM does not load DoRA; {MERGED}", "No: llama.cpp does not load DoRA"),
        ({"trainableTokens": ["x"]}, "No: vLLM does not load trained tokens", "No: llama.cpp does not load trained"),
        ({"targetParameters": ["e"]}, "Unknown: adapters of experts", "Unknown: adapters of experts"),
        ({"variant": "rslora", "trainableTokens": ["x"]}, "No: vLLM does not load trained", "No: llama.cpp does not"),
    ],
)
def test_servable_names_the_feature_and_the_remedy(lora: dict[str, Any], vllm: str, llama_cpp: str) -> None:
    said = describe(**lora)
    assert said.vllm.startswith(vllm)
    assert said.llama_cpp.startswith(llama_cpp)
    assert said.peft == "Yes"
    assert all(MERGED in text for text in (said.vllm, said.llama_cpp) if not text.startswith("Yes"))


@pytest.mark.parametrize(
    ("architecture", "vllm", "llama_cpp"),
    [
        ("GPT2LMHeadModel", "No: vLLM 0.32.0 has no LoRA support for GPT2LMHeadModel", "Yes"),
        ("MptForCausalLM", "Unknown: vLLM 0.32.0 has no model of its own", "No: llama.cpp (llama-cpp-python 0.3.36)"),
        ("", "Unknown: vLLM 0.32.0 has no model of its own for a config.json without", "No: llama.cpp"),
        ("X" * 5000, "Unknown", "No"),
    ],
)
def test_servable_names_the_architecture_that_is_not_supported(architecture: str, vllm: str, llama_cpp: str) -> None:
    said = describe(architecture)
    assert said.vllm.startswith(vllm)
    assert said.llama_cpp.startswith(llama_cpp)


@pytest.mark.parametrize("model", ["s3://models/base/", "pvc://models/base"])
def test_servable_base_model_without_a_public_name_needs_one_for_resolvers(model: str) -> None:
    assert (
        describe(model=model, rank=32).vllm
        == "Yes, with --max-lora-rank 32; for its resolvers set output.baseModelName"
    )


def test_servable_texts_fit_the_termination_message() -> None:
    every = [describe(name, "s3://models/base/", variant="dora") for name in load_servers()["families"].values()]
    every += [describe(name, "s3://models/base/", rank=512) for name in load_servers()["families"].values()]
    assert max(len(each.model_dump_json()) for each in every) < 700


def test_manifest_with_a_newer_servable_stays_readable() -> None:
    from tests.support.trainer.run_records import make_manifest

    content = make_manifest().to_json() | {"servable": {"vllm": "Yes", "sglang": "Yes"}}
    assert AdapterManifest.model_validate(content).servable is None
