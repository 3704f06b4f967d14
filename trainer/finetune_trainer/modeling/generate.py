"""Ask a model, with or without an adapter, the way its training data was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.data.loss_masking import encode_prompt
from finetune_trainer.modeling.library_errors import translate_model_errors
from finetune_trainer.modeling.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def generate_completions(
    model_dir: Path, adapter_dir: Path | None, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """One answer per prompt, the likeliest token each time, so always the same; it ends where the turn does.

    A prompt is a user's turn if there is a chat template, else plain text. The tokenizer and the tokens that end an
    answer are the adapter's if there is one. Raises `MODEL_INVALID`.
    """
    from finetune_trainer.modeling.inference import TextGenerator

    tokenizer = load_tokenizer(adapter_dir or model_dir)
    model = _load_model(model_dir, adapter_dir)
    encoded_prompts = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    return TextGenerator(model, tokenizer, max_new_tokens).generate(encoded_prompts)


def _load_model(model_dir: Path, adapter_dir: Path | None) -> PreTrainedModel:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    has_gpu = torch.cuda.is_available()
    with translate_model_errors():
        base = AutoModelForCausalLM.from_pretrained(
            str(model_dir),
            dtype=torch.bfloat16 if has_gpu and torch.cuda.is_bf16_supported() else torch.float32,
            device_map={"": 0} if has_gpu else None,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
        if adapter_dir is not None and (adapter_dir / "generation_config.json").is_file():
            base.generation_config = GenerationConfig.from_pretrained(str(adapter_dir))
    model = base if adapter_dir is None else PeftModel.from_pretrained(base, str(adapter_dir))
    return model.eval()
