"""Tiny models of several families, with two layers, random weights, and the tokenizer of the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.trainer.tiny_model import CHATML, import_libraries, tokenizer

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
_GEMMA = {"sliding_window": 64, "query_pre_attn_scalar": 16, "head_dim": 16}
_MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
_SCALED = {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
SHAPES: dict[str, dict[str, Any]] = {
    "gemma2": _GEMMA,
    "recurrent_gemma": {"attention_window_size": 64, "lru_width": 64, "block_types": ["recurrent", "attention"]},
    "cohere2": {"sliding_window": 64, "logit_scale": 0.25, "head_dim": 16},
    "granite": {**_SCALED, "attention_multiplier": 0.0625},
    "minicpm3": {**_MLA, "dim_model_base": 32, "num_key_value_heads": 4},
    "mixtral": {**_EXPERTS, "router_aux_loss_coef": 0.5, "output_router_logits": True},
    "qwen3_moe": {**_EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": [], "router_aux_loss_coef": 0.5},
    "granitemoehybrid": {
        **_SCALED,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_expand": 2,
        "mamba_d_state": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 64,
        "position_embedding_type": None,
    },
    "gpt_oss": {
        **_EXPERTS,
        "head_dim": 16,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "bamba": {
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_expand": 2,
    },
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
}
OUTPUT_HEAD_SCALE = 20
"""Factor on the weights of the output head: logits of a fresh model are too small for logit scaling to matter."""


def build_family(folder: Path, family: str, template: str | None = CHATML, **shape: Any) -> Path:
    """Write a model of a family, with the same weights at each call. Return its folder."""
    import_libraries()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fast_tokenizer = tokenizer(template)
    ids = {
        "vocab_size": len(fast_tokenizer),
        "pad_token_id": fast_tokenizer.pad_token_id,
        "eos_token_id": fast_tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**_SIZES, **ids, "bos_token_id": None, **SHAPES.get(family, {}), **shape})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(OUTPUT_HEAD_SCALE)
    model.save_pretrained(folder)
    fast_tokenizer.save_pretrained(folder)
    return folder


def cross_entropy(folder: Path, rows: dict[str, Any]) -> float:
    """Return the mean cross-entropy of the supervised tokens in nats, from the model's logits, one row at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model, losses = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="none"))
    supervised_losses = torch.cat(losses)[
        torch.tensor([label for labels in rows["labels"] for label in labels[1:]]) != -100
    ]
    return float(supervised_losses.mean())
