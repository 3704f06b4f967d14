"""Tiny multimodal models with random weights: two language layers, and a tower of one layer for images or audio."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.matrix.families import OUTPUT_HEAD_SCALE
from tests.support.trainer.tiny_model import import_libraries, tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MARKER_IDS = range(500, 512)
"""IDs of the tokens that stand for images and audio, beyond those of the tokenizer."""
_TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
_GEMMA = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_IMAGES = {**_TOWER, "image_size": 28, "patch_size": 14}
_QWEN_IMAGES = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0},
}
SHAPES: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": {**_GEMMA, "query_pre_attn_scalar": 16}, "vision_config": _IMAGES},
    "gemma4": {
        "text_config": {
            **_GEMMA,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 512,
            "num_kv_shared_layers": 0,
        },
        "vision_config": {**_TOWER, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 14},
    },
    "qwen2_5_vl": {
        "text_config": {"rope_parameters": _ROPE},
        "vision_config": {**_QWEN_IMAGES, "fullatt_block_indexes": [0]},
    },
    "qwen3_vl": {
        "text_config": {"rope_parameters": _ROPE},
        "vision_config": {**_QWEN_IMAGES, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    },
    "qwen3_5": {"text_config": _LINEAR_ATTENTION, "vision_config": {**_QWEN_IMAGES, "num_position_embeddings": 16}},
    "mistral3": {
        "text_config": {"model_type": "mistral", "sliding_window": None},
        "vision_config": {**_IMAGES, "model_type": "pixtral", "head_dim": 16},
    },
    "llama4": {
        "text_config": {
            "num_local_experts": 2,
            "intermediate_size_mlp": 128,
            "moe_layers": [1],
            "attention_chunk_size": 64,
        },
        "vision_config": {
            **_IMAGES,
            "intermediate_size": 128,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "pixel_shuffle_ratio": 0.5,
        },
    },
    "qwen2_audio": {
        "text_config": {"model_type": "qwen2"},
        "audio_config": {
            "model_type": "qwen2_audio_encoder",
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "max_source_positions": 20,
        },
    },
}
_MARKERS = ("image_token", "video_token", "audio_token", "boi_token", "eoi_token", "vision_start_token")


def build_multimodal(folder: Path, family: str) -> Path:
    """Write a multimodal model of a family, with the same weights at each call. Return its folder."""
    model, words = _create_model(family), tokenizer()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _create_model(family: str) -> PreTrainedModel:
    import_libraries()
    import torch
    from transformers import MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoConfig

    words, shape = tokenizer(), SHAPES[family]
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    defaults = AutoConfig.for_model(family).to_dict()
    names = [f"{name}_{kind}" for name in _MARKERS for kind in ("id", "index") if f"{name}_{kind}" in defaults]
    markers = dict(zip(names, _MARKER_IDS, strict=False))
    text = {**_TEXT, **ids, **shape["text_config"]}
    config = AutoConfig.for_model(family, **{**shape, **markers, "text_config": text})
    torch.manual_seed(0)
    model = MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)](config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(OUTPUT_HEAD_SCALE)
    return model
