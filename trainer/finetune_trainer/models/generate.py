"""Ask a model, with or without an adapter, the way its training data was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.data.labels import encode_prompt, stop_ids
from finetune_trainer.faults import model_errors
from finetune_trainer.models.model import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(model_dir: Path, adapter_dir: Path | None, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """One answer per prompt, the likeliest token each time, so always the same; it ends where the turn does.

    A prompt is a user's turn if there is a chat template, else plain text. The tokenizer is the adapter's if there is
    one. Raises `MODEL_INVALID`.
    """
    tokenizer = load_tokenizer(adapter_dir or model_dir)
    model = _load(model_dir, adapter_dir)
    return [_answer(model, tokenizer, prompt, max_new_tokens) for prompt in prompts]


def _load(model_dir: Path, adapter_dir: Path | None) -> PreTrainedModel:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    gpu = torch.cuda.is_available()
    with model_errors():
        base = AutoModelForCausalLM.from_pretrained(
            str(model_dir),
            dtype=torch.bfloat16 if gpu and torch.cuda.is_bf16_supported() else torch.float32,
            device_map={"": 0} if gpu else None,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    model = base if adapter_dir is None else PeftModel.from_pretrained(base, str(adapter_dir))
    return model.eval()


def _answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int) -> str:
    import torch
    from transformers import GenerationConfig

    tokens = torch.tensor([encode_prompt(tokenizer, prompt)], device=model.device)
    own = model.generation_config.eos_token_id
    stops = {*stop_ids(tokenizer), *([] if own is None else own if isinstance(own, list) else [own])}
    # A config of our own: the model's may ask for sampling, of which the arguments would then be left over.
    how = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.no_grad():
        output = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=how)
    answer: str = tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True)
    return answer.strip()
