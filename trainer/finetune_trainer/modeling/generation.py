"""Greedy generation of answers, independent of the base model's own generation config. Imports torch inside functions
only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.data.answer_text import find_opened_marker, list_marker_tokens, parse_answer
from finetune_trainer.data.end_of_turn import get_stop_token_ids
from finetune_trainer.data.loss_masking import encode_prompt
from finetune_trainer.modeling.batch_limits import MAX_GENERATION_PROMPTS, MAX_GENERATION_TOKENS
from finetune_trainer.modeling.library_errors import translate_model_errors
from finetune_trainer.modeling.loading import check_loading_info, load_tokenizer, load_weights
from finetune_trainer.modeling.model_config import build_meta_model, load_model_config
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.modeling.stored_quantization import build_dequantization_config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer
    from transformers.generation.utils import GenerateDecoderOnlyOutput


_OPENED_MARKER_TOKENS = 16
"""Tokens at the end of a prompt in which the beginning of the reasoning is searched."""
_PADDING_CHECK_TOKENS = 8
"""Tokens of an answer that are compared to find out whether padding changes it."""


@dataclass(frozen=True)
class Answer:
    """A generated answer."""

    text: str
    """The whole text, with reasoning and what the chat template writes around it."""
    final: str
    """The answer without its reasoning; see `answer_text.AnswerParts`."""
    reasoning: str = ""
    is_cut: bool = False
    """Whether no token ends the answer, so that it was cut at the maximum number of new tokens."""


class CompletionDecoder:
    """Decodes the tokens of an answer, up to the first token that ends it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._end_ids = frozenset(get_stop_token_ids(tokenizer) if end_ids is None else end_ids)
        added_ids = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._hidden_ids = {*tokenizer.all_special_ids, *added_ids} - list_marker_tokens(tokenizer.get_vocab())

    def decode(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> Answer:
        """Return the answer to a prompt without its end token, special tokens and surrounding whitespace."""
        # The end is cut off by its ID: skip_special_tokens keeps tokens that are not marked as special.
        answer_ids = list(takewhile(lambda token: token not in self._end_ids, ids))
        text = str(self._tokenizer.decode(answer_ids, skip_special_tokens=True)).strip()
        opened = find_opened_marker(self._decode_with_markers(prompt[-_OPENED_MARKER_TOKENS:])) if prompt else ""
        parts = parse_answer(opened + self._decode_with_markers(answer_ids))
        return Answer(text, parts.text, parts.reasoning, is_cut=len(answer_ids) == len(ids))

    def _decode_with_markers(self, ids: Sequence[int]) -> str:
        """Decode without special tokens, except those that `parse_answer` reads."""
        return str(self._tokenizer.decode([id_ for id_ in ids if id_ not in self._hidden_ids]))


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
    streamer: BaseStreamer | None = None
    """Gets the tokens of a single prompt and of its answer as they are generated."""

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        """Return one answer for each prompt, which is given in tokens."""
        self.model.eval()
        completions, config = (
            [Answer("", "", is_cut=True)] * len(prompts),
            _build_greedy_config(self.model, self.tokenizer),
        )
        decoder = CompletionDecoder(self.tokenizer, config.eos_token_id or ())
        can_pad = self._ignores_padding(prompts)
        for token_limit, batch in self._batch_prompts(prompts, can_pad):
            config.max_new_tokens = token_limit
            generated = self._generate_batch([prompts[index] for index in batch], config)
            for index, ids in zip(batch, generated, strict=True):
                completions[index] = decoder.decode(ids, prompts[index])
            self.heartbeat()
        return completions

    def _ignores_padding(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Return whether padding changes the first tokens of an answer only as rounding does. The state of some models
        with linear attention (MiniMax, RWKV) reads the padding."""
        import torch

        usable = [prompt for prompt in prompts if self._limit_new_tokens(prompt) >= _PADDING_CHECK_TOKENS]
        shortest, longest = min(usable, key=len, default=()), max(usable, key=len, default=())
        if len(shortest) == len(longest):
            return True
        config = _build_greedy_config(self.model, self.tokenizer)
        config.max_new_tokens = config.min_new_tokens = _PADDING_CHECK_TOKENS
        config.output_logits = True
        alone, padded = (
            torch.stack([logits[0].float().log_softmax(-1) for logits in self._call_model(batch, config).logits])
            for batch in ([shortest], [shortest, longest])
        )
        # After the first token that differs, other texts are compared.
        is_same = (alone.argmax(-1) == padded.argmax(-1)).cumprod(0).roll(1).bool()
        is_same[0] = True
        change = float((alone - padded)[is_same].abs().mean())
        return change <= (1e-3 if self.model.dtype == torch.float32 else 0.1)

    def _batch_prompts(self, prompts: Sequence[Sequence[int]], can_pad: bool) -> Iterator[tuple[int, list[int]]]:
        """Yield a limit of new tokens and the indices of prompts that have this limit: prompts of similar length, or of
        equal length if they cannot be padded."""

        def key(index: int) -> tuple[int, int]:
            return self._limit_new_tokens(prompts[index]), 0 if can_pad else len(prompts[index])

        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for (token_limit, _), group in groupby(order, key=key):
            indices = list(group) if token_limit > 0 else []
            while indices:
                size = _count_fitting([len(prompts[index]) + token_limit for index in indices[:MAX_GENERATION_PROMPTS]])
                yield token_limit, indices[:size]
                del indices[:size]

    def _limit_new_tokens(self, prompt: Sequence[int]) -> int:
        positions = get_max_positions(self.model.config)
        return self.max_new_tokens if positions is None else min(self.max_new_tokens, positions - len(prompt))

    def _generate_batch(self, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
        """Return the new tokens of each prompt."""
        output = self._call_model(prompts, config, self.streamer)
        completions: list[list[int]] = output.sequences[:, max(map(len, prompts)) :].tolist()
        return completions

    def _call_model(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, streamer: BaseStreamer | None = None
    ) -> GenerateDecoderOnlyOutput:
        """Pad the prompts on the left to shape (prompts, tokens), and return what `generate` returns."""
        import torch

        longest = max(map(len, prompts))
        pad_id = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        attention_mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = self.model.device
        with torch.no_grad(), ignore_model_config(self.model), _disable_router_loss(self.model):
            output: GenerateDecoderOnlyOutput = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=attention_mask.to(device),
                generation_config=config,
                streamer=streamer,
            )
        return output


def _count_fitting(lengths: Sequence[int]) -> int:
    """Return how many of the texts, which are sorted by length, form a batch within the limit of tokens."""
    return max([size for size, longest in enumerate(lengths, 1) if size * longest <= MAX_GENERATION_TOKENS], default=1)


def generate_completions(
    model_dir: Path, adapter_dir: Path | None, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Load a model, with an adapter if there is one, and return one greedy answer for each prompt.

    A prompt becomes a user turn if there is a chat template, otherwise it is plain text. The tokenizer and the tokens
    that end an answer are those of the adapter, if there is one. Raises `MODEL_INVALID`.
    """
    tokenizer = load_tokenizer(adapter_dir or model_dir)
    model = load_for_inference(model_dir, adapter_dir)
    encoded_prompts = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    return [answer.text for answer in TextGenerator(model, tokenizer, max_new_tokens).generate(encoded_prompts)]


def load_for_inference(model_dir: Path, adapter_dir: Path | None) -> PreTrainedModel:
    """Load a model, with an adapter if there is one, in the precision of this machine. Raises `MODEL_INVALID`."""
    base = load_base_model(model_dir)
    return (base if adapter_dir is None else add_adapter(base, adapter_dir)).eval()


def load_base_model(model_dir: Path) -> PreTrainedModel:
    """Load a base model in the precision of this machine. Raises `MODEL_INVALID`."""
    import torch

    dtype = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    model_config = load_model_config(model_dir)
    build_meta_model(model_config)  # fails for invalid sizes
    base, info = load_weights(model_dir, model_config, dtype, build_dequantization_config(model_config))
    check_loading_info(base, info)
    return base


def add_adapter(base: PreTrainedModel, adapter_dir: Path) -> PeftModel:
    """Load an adapter into a base model, whose generation config becomes that of the adapter, if it has one."""
    from peft import PeftModel
    from transformers import GenerationConfig

    if (adapter_dir / "generation_config.json").is_file():
        with translate_model_errors():
            base.generation_config = GenerationConfig.from_pretrained(str(adapter_dir))
    return PeftModel.from_pretrained(base, str(adapter_dir))


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
        return_dict_in_generate=True,
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
