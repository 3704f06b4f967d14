"""The model families of the support matrix, by `model_type`, as shapes of tiny models with two layers.

A family of published models that differ in their layers has several variants: `model_type:name`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.modeling.support_matrix import VARIANT_SEPARATOR

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

OUTPUT_HEAD_SCALE = 20
"""Factor on the weights of the output head: logits of a fresh model are too small for logit scaling to matter."""
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_ROUTER_LOSS = {"router_aux_loss_coef": 0.5, "output_router_logits": True}
_GEMMA = {"sliding_window": 64, "query_pre_attn_scalar": 16, "head_dim": 16}
_MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
_SCALED = {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
_MIXED_ATTENTION = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
_DEEPSEEK = {
    **_MLA,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_SPARSE_ATTENTION = {**_DEEPSEEK, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 512}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_expand": 2}
_LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 16,
}
_QWEN_EXPERTS = {**_EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": [], "shared_expert_intermediate_size": 64}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 64,
}
_QWEN3_VISION = {**_QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
_QWEN_TOKENS = {
    "image_token_id": 500,
    "video_token_id": 501,
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
}
_CLIP_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
_GEMMA4 = {
    **_MIXED_ATTENTION,
    "head_dim": 16,
    "global_head_dim": 16,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 512,
    "final_logit_softcapping": 30.0,
}
_GEMMA3N = {
    **_MIXED_ATTENTION,
    "head_dim": 16,
    "intermediate_size": [128, 128],
    "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 16,
    "laurel_rank": 8,
    "num_kv_shared_layers": 0,
    "activation_sparsity_pattern": [0.0, 0.0],
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": None, "head_dim": 16},
    "ministral": {"head_dim": 16, **_MIXED_ATTENTION},
    "smollm3": {},
    "phi": {},
    "phi3": {},
    "gemma": {"head_dim": 16},
    "gemma2": _GEMMA,
    "gemma3_text": {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": _GEMMA4,
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"sliding_window": 64, "logit_scale": 0.25, "head_dim": 16},
    "olmo": {},
    "olmo2": {},
    "olmo3": _MIXED_ATTENTION,
    "starcoder2": {},
    "stablelm": {},
    "seed_oss": {"head_dim": 16},
    "granite": {**_SCALED, "attention_multiplier": 0.0625},
    "minicpm3": {**_MLA, "dim_model_base": 32, "num_key_value_heads": 4},
    "nemotron": {},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "ernie4_5": {"head_dim": 16},
    "apertus": {},
    "exaone4": {**_MIXED_ATTENTION, "sliding_window_pattern": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "arcee": {},
    "helium": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": None},
    "persimmon": {},
    "falcon": {"new_decoder_architecture": False, "multi_query": True},
    "falcon:grouped": {"new_decoder_architecture": True, "num_kv_heads": 2},  # Falcon 40B and Falcon 2 11B
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "bloom": {},
    "mpt": {},
    "recurrent_gemma": {"attention_window_size": 64, "lru_width": 64, "block_types": ["recurrent", "attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "expand": 2, "chunk_size": 32},
    "falcon_mamba": {"state_size": 16, "expand": 2},
    "llama4_text": {
        **_EXPERTS,
        "head_dim": 16,
        "intermediate_size_mlp": 128,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
        "layer_types": ["chunked_attention", "full_attention"],
    },
    "mixtral": {**_EXPERTS, **_ROUTER_LOSS, "sliding_window": None},
    "qwen2_moe": {**_QWEN_EXPERTS},
    "qwen3_moe": {**_QWEN_EXPERTS, "head_dim": 16, "router_aux_loss_coef": 0.5},
    "qwen3_next": {**_QWEN_EXPERTS, **_LINEAR_ATTENTION},
    "qwen3_5_text": {**_LINEAR_ATTENTION},
    "phimoe": _EXPERTS,
    "olmoe": _EXPERTS,
    "gpt_oss": {**_EXPERTS, "head_dim": 16, **_MIXED_ATTENTION},
    "granitemoe": {**_SCALED, **_EXPERTS, "attention_multiplier": 0.0625},
    "granitemoehybrid": {
        **_SCALED,
        "layer_types": ["mamba", "attention"],
        **_MAMBA,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 64,
        "position_embedding_type": None,
    },
    "granitemoehybrid:attention": {  # Granite 4.0 350M, 1B and Micro
        **_SCALED,
        "layer_types": ["attention", "attention"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 128,
        "position_embedding_type": "rope",
    },
    "granitemoehybrid:dense": {  # Granite 4.0 H 350M, H 1B and H Micro
        **_SCALED,
        "layer_types": ["mamba", "attention"],
        **_MAMBA,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 128,
        "position_embedding_type": None,
    },
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "n_group": 1,
        "topk_group": 1,
        "head_dim": 16,
    },
    "deepseek_v2": {**_DEEPSEEK, "topk_method": "greedy"},
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _SPARSE_ATTENTION,
    "glm_moe_dsa": _SPARSE_ATTENTION,
    "dots1": {**_DEEPSEEK, "head_dim": 16},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64, "moe_layer_end_index": 1},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "minimax": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "block_size": 32}
    | {"layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": {**_EXPERTS, "head_dim": 16, "rotary_dim": 8},
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "jamba:dense": {  # Jamba Reasoning 3B
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "bamba": {"attn_layer_indices": [1], **_MAMBA},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 128, "mamba_chunk_size": 32, "head_dim": 16},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "expand": 2,
        "head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "mamba_d_state": 16,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
        "chunk_size": 32,
        "num_mem_blocks": 1,
        "use_mem_rope": True,
    },
    "kimi_linear": {
        **_MLA,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "moe_intermediate_size": 64,
        "mlp_layer_types": ["dense", "sparse"],
        "layer_types": ["linear_attention", "full_attention"],
        "linear_head_dim": 16,
        "linear_num_heads": 4,
    },
}
"""Families whose config describes a text model alone."""
MULTIMODAL_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": _CLIP_VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 500,
        "boi_token_index": 501,
        "eoi_token_index": 502,
    },
    "gemma4": {
        "text_config": _GEMMA4,
        "vision_config": {**_CLIP_VISION, "num_key_value_heads": 2, "head_dim": 16},
        "audio_config": None,
        "image_token_id": 500,
        "audio_token_id": 504,
        "video_token_id": 501,
        "boi_token_id": 502,
        "eoi_token_id": 503,
    },
    "qwen2_vl": {
        "text_config": _MROPE,
        "vision_config": {"embed_dim": 32, "hidden_size": 64, "depth": 1, "num_heads": 2, "patch_size": 4},
    }
    | _QWEN_TOKENS,
    "qwen2_5_vl": {"text_config": _MROPE, "vision_config": {**_QWEN_VISION, "fullatt_block_indexes": [0]}}
    | _QWEN_TOKENS,
    "qwen3_vl": {"text_config": {**_MROPE, "head_dim": 16}, "vision_config": _QWEN3_VISION, **_QWEN_TOKENS},
    "qwen3_vl_moe": {
        "text_config": {**_QWEN_EXPERTS, **_MROPE, "head_dim": 16},
        "vision_config": _QWEN3_VISION,
        **_QWEN_TOKENS,
    },
    "qwen3_5": {"text_config": {**_LINEAR_ATTENTION, **_MROPE}, "vision_config": _QWEN3_VISION, **_QWEN_TOKENS},
    "qwen3_5_moe": {
        "text_config": {**_LINEAR_ATTENTION, **_MROPE, **_QWEN_EXPERTS},
        "vision_config": _QWEN3_VISION,
        **_QWEN_TOKENS,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        "vision_config": {"model_type": "pixtral", **_CLIP_VISION, "head_dim": 16},
        "image_token_index": 500,
    },
    "llama4": {
        "text_config": {**FAMILIES["llama4_text"]},
        "vision_config": {
            **_CLIP_VISION,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "pixel_shuffle_ratio": 0.5,
        },
        "image_token_index": 500,
        "boi_token_index": 501,
        "eoi_token_index": 502,
    },
}
"""Families whose config has parts: a text model, which is fine-tuned, and models of other inputs."""
MODEL_TYPES = (*FAMILIES, *MULTIMODAL_FAMILIES)


def build_config(family: str, token_ids: dict[str, Any], **shape: Any) -> PreTrainedConfig:
    """Return the config of a family with the vocabulary in `token_ids`. `shape` are fields that differ."""
    from transformers import AutoConfig

    if family not in MULTIMODAL_FAMILIES:
        model_type = family.partition(VARIANT_SEPARATOR)[0]
        return AutoConfig.for_model(model_type, **{**_SIZES, **token_ids, **FAMILIES.get(family, {}), **shape})
    settings = {**MULTIMODAL_FAMILIES[family], **shape}
    settings["text_config"] = {**_SIZES, **token_ids, **settings["text_config"]}
    return AutoConfig.for_model(family, tie_word_embeddings=False, **settings)


def build_model(config: PreTrainedConfig, family: str) -> PreTrainedModel:
    """Return a model with random weights, the same at each call, of the class that published models name."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(0)
    auto_class = AutoModelForImageTextToText if family in MULTIMODAL_FAMILIES else AutoModelForCausalLM
    model = auto_class.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(OUTPUT_HEAD_SCALE)
    return model
