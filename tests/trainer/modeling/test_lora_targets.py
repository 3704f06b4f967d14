"""Tests of `targetModules`: the modules of each model family that accept an adapter, and the errors for others."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, config, import_libraries

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.adapter_targets import resolve_target_modules
from finetune_trainer.modeling.loading import load_model
from finetune_trainer.modeling.lora import add_adapter
from finetune_trainer.planning.model_shape import compute_model_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = [
    pytest.mark.training,
    pytest.mark.timeout(TRAINING_TIMEOUT),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),  # PEFT sets it for GPT-2 by itself
]

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
FUSED = ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]
FAMILIES: dict[str, tuple[dict[str, Any], list[str], dict[str, str]]] = {
    "llama": (
        SIZES,
        LLAMA,
        {
            "self_attn": "a LlamaAttention, not a linear layer",
            "act_fn": "a SiLUActivation, not a linear layer",
            "input_layernorm": "a LlamaRMSNorm, not a linear layer",
            "lm_head": "the output head",
            "embed_tokens": "an embedding",
        },
    ),
    "gpt2": (
        GPT2 | {"bos_token_id": 1, "eos_token_id": 2},
        ["c_attn", "c_fc", "c_proj"],
        {
            "attn": "a GPT2Attention, not a linear layer",
            "wte": "an embedding",
            "ln_1": "a LayerNorm, not a linear layer",
        },
    ),
    "phi3": (SIZES, ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"], {"mlp": "a Phi3MLP, not a linear layer"}),
    "mixtral": (
        SIZES | EXPERTS | {"num_local_experts": 4},
        ATTENTION,
        {"gate": "a router", "experts": "a MixtralExperts, not a linear layer"},
    ),
    "qwen3_moe": (
        SIZES | EXPERTS | {"num_experts": 4},
        ATTENTION,
        {"gate": "a router", "mlp": "a Qwen3MoeSparseMoeBlock, not a linear layer"},
    ),
    "phimoe": (SIZES | EXPERTS | {"num_local_experts": 4}, ATTENTION, {"router": "a router"}),
    "gemma2": (SIZES | {"head_dim": 8}, LLAMA, {"embed_tokens": "an embedding"}),
    "falcon": (SIZES, FUSED, {"word_embeddings": "an embedding", "lm_head": "the output head"}),
    "bloom": (SIZES | {"n_layer": 2, "n_head": 4}, FUSED, {"gelu_impl": "a BloomGelu, not a linear layer"}),
    "mamba": (
        SIZES,
        ["in_proj"],
        {"conv1d": "a Conv1d, not a linear layer", "out_proj": "read by a kernel", "dt_proj": "read by a kernel"},
    ),
}


def build_base_model(family: str) -> PreTrainedModel:
    """Return a new model, because PEFT modifies the model that it adapts."""
    import_libraries()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family][0]))


def find_adapted_modules(family: str, *targets: str) -> set[str]:
    model = add_adapter(config({"lora": {"rank": 2, "targetModules": list(targets)}}), build_base_model(family), Path())
    return {name.rsplit(".", 1)[-1] for name in model.base_model.targeted_module_names}


@cache
def refusal_message(family: str, *targets: str) -> str:
    with pytest.raises(TrainerError) as caught:
        find_adapted_modules(family, *targets)
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert caught.value.message.startswith("training.lora.targetModules: ")
    return caught.value.message.removeprefix("training.lora.targetModules: ")


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_unknown_name_is_refused_with_valid_names(family: str) -> None:
    names = FAMILIES[family][1]
    assert refusal_message(family, "query") == f"the model has no query; use all-linear or some of {', '.join(names)}"
    assert find_adapted_modules(family, *names) == set(names)
    for name in names:
        assert find_adapted_modules(family, name) == {name}


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_unsupported_module_is_refused(family: str) -> None:
    _, (possible, *_), refusals = FAMILIES[family]
    for name, why in refusals.items():
        assert f"{name} cannot have an adapter, it is {why}" in refusal_message(family, possible, name)


MAMBA = {
    "mamba": (SIZES, {"in_proj"}),
    "falcon_mamba": (SIZES, {"in_proj"}),
    "mamba2": (SIZES | {"num_heads": 4, "head_dim": 16, "n_groups": 1}, {"in_proj"}),
    "falcon_h1": (
        SIZES | {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1},
        {*LLAMA, "in_proj"},
    ),
    "nemotron_h": (
        SIZES | {"layers_block_type": ["linear_attention", "full_attention"], "mamba_num_heads": 4, "n_groups": 1},
        {*ATTENTION, "in_proj"},
    ),
}


@pytest.mark.parametrize("family", MAMBA)
def test_targets_all_linear_mamba_skips_unsupported_modules(family: str) -> None:
    sizes, names = MAMBA[family]
    FAMILIES[family] = (sizes, [], {})
    assert find_adapted_modules(family, "all-linear") == names


@pytest.mark.parametrize("family", ["deepseek_v32", "glm_moe_dsa"])
def test_targets_all_linear_skips_indexer_of_sparse_attention(family: str) -> None:
    """The indexer selects tokens, without a gradient."""
    FAMILIES[family] = (SIZES | EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}, [], {})
    names = find_adapted_modules(family, "all-linear")
    assert {"q_a_proj", "kv_b_proj", "o_proj"} <= names
    assert names.isdisjoint({"wq_b", "wk", "weights_proj"})
    assert "wk cannot have an adapter, it is a part of an indexer" in refusal_message(family, "wk")


def test_targets_duplicate_name_is_refused() -> None:
    assert refusal_message("llama", "q_proj", "v_proj", "q_proj").startswith("q_proj is named twice; ")


@pytest.mark.parametrize("path", ["model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj", "self_attn.q_proj"])
def test_targets_module_path_suffix_is_accepted(path: str) -> None:
    assert find_adapted_modules("llama", path) == {"q_proj"}


def test_targets_converted_to_experts_by_peft_are_refused() -> None:
    FAMILIES["deepseek_v3"] = (
        SIZES | EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
        [],
        {},
    )
    message = refusal_message("deepseek_v3", "gate_proj")
    assert "gate_proj cannot have an adapter, it is a name that PEFT applies to the fused experts" in message


@pytest.mark.parametrize("target", ["self_attn", "lm_head", "wqkv"])
def test_targets_refused_by_run_are_refused_by_plan(tmp_path: Path, target: str) -> None:
    build(tmp_path / "model")
    settings = config({"lora": {"targetModules": [target]}})
    with pytest.raises(TrainerError) as of_run:
        load_model(settings, tmp_path / "model", "transformers")
    with pytest.raises(TrainerError) as of_plan:
        compute_model_shape(settings, tmp_path / "model")
    assert of_run.value.reason is of_plan.value.reason is Reason.CONFIG_INVALID
    assert of_run.value.message == of_plan.value.message


EXPERT_FAMILIES = {
    "mixtral": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
    "gpt_oss": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
    "granitemoe": ["block_sparse_moe.experts.down_proj", "block_sparse_moe.experts.gate_up_proj"],
}
FAMILIES["gpt_oss"] = (SIZES | EXPERTS | {"num_local_experts": 4, "head_dim": 8}, ATTENTION, {"router": "a router"})
FAMILIES["granitemoe"] = (SIZES | EXPERTS | {"num_local_experts": 4}, ATTENTION, {"router": "a router"})


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "phimoe", "gpt_oss", "granitemoe"])
def test_targets_all_linear_leaves_out_experts_and_routers(family: str) -> None:
    model = add_adapter(config({"lora": {"rank": 2}}), build_base_model(family), Path())
    assert {name.rsplit(".", 1)[-1] for name in model.base_model.targeted_module_names} == set(ATTENTION)
    assert model.base_model.targeted_parameter_names == []
    assert not model.peft_config["default"].rank_pattern


def refuse_parameters(family: str, *names: str, **lora: Any) -> str:
    settings = config({"lora": {"targetParameters": list(names), **lora}})
    with pytest.raises(TrainerError) as caught:
        add_adapter(settings, build_base_model(family), Path())
    assert caught.value.reason is Reason.CONFIG_INVALID
    return caught.value.message.removeprefix("training.lora.targetParameters: ")


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_target_parameters_unknown_name_is_refused_with_candidates(family: str) -> None:
    names = EXPERT_FAMILIES[family]
    assert refuse_parameters(family, "w1") == f"the model has no w1; use some of {', '.join(names)}"
    model = add_adapter(config({"lora": {"targetParameters": names}}), build_base_model(family), Path())
    assert len(model.base_model.targeted_parameter_names) == 2 * len(names)


@pytest.mark.parametrize(
    ("family", "name", "problem"),
    [
        ("mixtral", "gate.weight", "the weight of a router"),
        ("mixtral", "q_proj.weight", "the weight of a linear layer"),
        ("mixtral", "embed_tokens.weight", "an embedding"),
        ("mixtral", "input_layernorm.weight", "no matrix"),
        ("gpt_oss", "experts.down_proj_bias", "no matrix"),
    ],
)
def test_target_parameters_unsupported_parameter_is_refused(family: str, name: str, problem: str) -> None:
    assert refuse_parameters(family, name).startswith(f"{name} cannot have an adapter, it is {problem}")


@pytest.mark.parametrize(("setting", "value"), [("dropout", 0.1), ("variant", "dora")])
def test_target_parameters_unsupported_setting_is_refused(setting: str, value: object) -> None:
    message = refuse_parameters("mixtral", "experts.down_proj", **{setting: value})
    assert message.startswith(f"PEFT does not support {setting}")


def test_target_parameters_of_dense_model_are_refused() -> None:
    message = refuse_parameters("llama", "experts.down_proj")
    assert message == "the model has no experts.down_proj; the model has no such parameters, remove the setting"


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize("target", ["all-linear", "q_proj"])
def test_targets_of_multimodal_model_are_in_its_language_part(target: str) -> None:
    text = SIZES | {"head_dim": 8, "sliding_window": 16}
    FAMILIES["gemma3"] = ({"text_config": text, "vision_config": VISION | {"image_size": 28, "patch_size": 14}}, [], {})
    model = add_adapter(config({"lora": {"targetModules": [target]}}), build_base_model("gemma3"), Path())
    paths = model.base_model.targeted_module_names
    assert len(paths) == 2 * (1 if target == "q_proj" else 7)
    assert all(path.startswith("model.language_model.layers.") for path in paths)
    assert "out_proj cannot have an adapter, it is outside of the language part" in refusal_message(
        "gemma3", "out_proj"
    )


def test_targets_all_linear_leaves_out_layers_within_a_router_of_any_name() -> None:
    import torch

    class TopKRouter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = torch.nn.Linear(16, 4)

    base = build_base_model("llama")
    base.model.layers[0].mlp.choice = TopKRouter()
    assert resolve_target_modules(config(), base) == LLAMA


def test_targets_plain_linear_router_is_adapted_by_name_only() -> None:
    sizes = SIZES | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16}
    FAMILIES["qwen2_moe"] = (sizes, [], {})
    assert find_adapted_modules("qwen2_moe", "all-linear") == set(LLAMA)
    assert find_adapted_modules("qwen2_moe", "shared_expert_gate") == {"shared_expert_gate"}
