"""Greedy generation of answers, independent of the base model's own generation config. Imports torch inside functions
only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.data.end_of_turn import get_stop_token_ids
from finetune_trainer.data.loss_masking import encode_prompt
from finetune_trainer.modeling.library_errors import translate_model_errors
from finetune_trainer.modeling.loading import load_tokenizer
from finetune_trainer.modeling.positions import get_max_positions

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_BATCH_SIZE = 8


class CompletionDecoder:
    """Decodes the tokens of an answer, up to the first token that ends it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._end_ids = frozenset(get_stop_token_ids(tokenizer) if end_ids is None else end_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the answer without its end token, special tokens and surrounding whitespace."""
        # The end is cut off by its ID: skip_special_tokens keeps tokens that are not marked as special.
        answer_ids = list(takewhile(lambda token: token not in self._end_ids, ids))
        return str(self._tokenizer.decode(answer_ids, skip_special_tokens=True)).strip()


@dataclass(frozen=True)
class TextGenerator:
    """Generates answers with greedy decoding, so that the same prompt always gets the same answer.

    The model's own generation config has no effect. An answer ends before the model runs out of positions; the answer
    to a prompt that takes all positions is empty.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    heartbeat: Callable[[], None] = lambda: None
    """Called after each batch."""

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return one answer for each prompt, which is given in tokens."""
        self.model.eval()
        completions, config = [""] * len(prompts), _build_greedy_config(self.model, self.tokenizer)
        decoder = CompletionDecoder(self.tokenizer, config.eos_token_id or ())
        for token_limit, batch in self._batch_prompts(prompts):
            config.max_new_tokens = token_limit
            generated = self._generate_batch([prompts[index] for index in batch], config)
            for index, ids in zip(batch, generated, strict=True):
                completions[index] = decoder.decode(ids)
            self.heartbeat()
        return completions

    def _batch_prompts(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
        """Yield a limit of new tokens and the indices of prompts of similar length that have this limit."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for token_limit, group in groupby(order, key=lambda index: self._limit_new_tokens(prompts[index])):
            indices = list(group) if token_limit > 0 else []
            for start in range(0, len(indices), _BATCH_SIZE):
                yield token_limit, indices[start : start + _BATCH_SIZE]

    def _limit_new_tokens(self, prompt: Sequence[int]) -> int:
        positions = get_max_positions(self.model.config)
        return self.max_new_tokens if positions is None else min(self.max_new_tokens, positions - len(prompt))

    def _generate_batch(self, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
        """Pad the prompts on the left to shape (prompts, tokens), and return the new tokens of each."""
        import torch

        longest = max(map(len, prompts))
        pad_id = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        attention_mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = self.model.device
        with torch.no_grad(), ignore_model_config(self.model), _disable_router_loss(self.model):
            output = self.model.generate(
                input_ids=ids.to(device), attention_mask=attention_mask.to(device), generation_config=config
            )
        completions: list[list[int]] = output[:, longest:].tolist()
        return completions


def generate_completions(
    model_dir: Path, adapter_dir: Path | None, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Load a model, with an adapter if there is one, and return one greedy answer for each prompt.

    A prompt becomes a user turn if there is a chat template, otherwise it is plain text. The tokenizer and the tokens
    that end an answer are those of the adapter, if there is one. Raises `MODEL_INVALID`.
    """
    tokenizer = load_tokenizer(adapter_dir or model_dir)
    model = _load_for_inference(model_dir, adapter_dir)
    encoded_prompts = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    return TextGenerator(model, tokenizer, max_new_tokens).generate(encoded_prompts)


def _load_for_inference(model_dir: Path, adapter_dir: Path | None) -> PreTrainedModel:
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


def collect_end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: those that training teaches, the EOS of the tokenizer, then those of the
    base model's generation config."""
    model_ids = model.generation_config.eos_token_id
    base_ids = model_ids if isinstance(model_ids, list) else [model_ids]
    return list(
        dict.fromkeys(token_id for token_id in (*get_stop_token_ids(tokenizer), *base_ids) if token_id is not None)
    )


def _build_greedy_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        eos_token_id=collect_end_token_ids(model, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id,
    )


@contextmanager
def ignore_model_config(model: PreTrainedModel) -> Iterator[None]:
    """Make `generate` use only the config that it is called with.

    transformers fills unset fields from the model's own config (`_prepare_generation_config`), so a
    `repetition_penalty` or `num_beams` in the base model's generation_config.json would apply otherwise.
    """
    from peft import PeftModel
    from transformers import GenerationConfig

    base_model = model.get_base_model() if isinstance(model, PeftModel) else model
    original = base_model.generation_config
    base_model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base_model.generation_config = original


@contextmanager
def _disable_router_loss(model: PreTrainedModel) -> Iterator[None]:
    """Set `output_router_logits` to false: some mixtures of experts would compute the router loss of each new token
    with the mask of the whole sequence, which fails."""
    config_values = vars(model.config.get_text_config())
    router_settings = {name: config_values[name] for name in ("output_router_logits",) if name in config_values}
    config_values.update(dict.fromkeys(router_settings, False))
    try:
        yield
    finally:
        config_values.update(router_settings)
