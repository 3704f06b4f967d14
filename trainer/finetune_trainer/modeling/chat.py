"""Conversations with a base model and with the same model and an adapter, which are loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.chat_template import template_errors
from finetune_trainer.data.loss_masking import encode_prompt, encode_turns
from finetune_trainer.data.row_types import RowError
from finetune_trainer.modeling.generation import (
    Answer,
    CompletionDecoder,
    TextGenerator,
    add_adapter,
    collect_end_token_ids,
    load_base_model,
)
from finetune_trainer.modeling.loading import load_tokenizer
from finetune_trainer.modeling.positions import get_max_positions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedTokenizerBase

BASE, TUNED = "base", "tuned"
_INCOMPLETE_CHARACTER = "\ufffd"


class ConversationError(Exception):
    """A conversation that the model cannot answer. The message says why."""


@dataclass(frozen=True)
class _Variant:
    """The base model, or the model with the adapter."""

    tokenizer: PreTrainedTokenizerBase
    generation_config: GenerationConfig


class ChatModel:
    """A base model and, if there is an adapter, the tuned model. Answers are those of `generate_completions`."""

    def __init__(self, model_dir: Path, adapter_dir: Path | None) -> None:
        self._base = self._model = load_base_model(model_dir)
        self._variants = {BASE: _Variant(load_tokenizer(model_dir), self._base.generation_config)}
        if adapter_dir is not None:
            self._model = add_adapter(self._base, adapter_dir)
            self._variants[TUNED] = _Variant(load_tokenizer(adapter_dir), self._base.generation_config)
        self._model.eval()

    @property
    def names(self) -> list[str]:
        """The names of the models, the default one first."""
        return [*reversed(self._variants)]

    def answer(
        self,
        name: str,
        turns: Sequence[dict[str, str]],
        max_new_tokens: int,
        on_text: Callable[[str], None] = lambda _: None,
    ) -> Answer:
        """Return the greedy answer to turns with `role` and `content`. `on_text` gets its parts as they are generated.

        A model without a chat template completes the text of the last turn. Raises `ConversationError`.
        """
        variant = self._variants[name]
        prompt = self._encode(variant.tokenizer, turns)
        with self._select(name):
            decoder = CompletionDecoder(variant.tokenizer, collect_end_token_ids(self._model, variant.tokenizer))
            streamer = AnswerStreamer(decoder, on_text)
            generator = TextGenerator(self._model, variant.tokenizer, max_new_tokens, streamer=streamer)
            answer = generator.generate([prompt])[0]
        streamer.finish(answer.text)
        return answer

    def _encode(self, tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]]) -> list[int]:
        rejections: tuple[type[Exception], ...] = (RowError, *template_errors())
        try:
            ids = encode_turns(tokenizer, turns) if tokenizer.chat_template else _encode_last(tokenizer, turns)
        except rejections as error:
            raise ConversationError(f"the chat template rejects the conversation: {error}") from error
        positions = get_max_positions(self._base.config)
        if positions is not None and len(ids) >= positions:
            raise ConversationError(f"the conversation has {len(ids)} tokens, the model has {positions} positions")
        return ids

    @contextmanager
    def _select(self, name: str) -> Iterator[None]:
        """Use the weights and the generation config of a variant."""
        self._base.generation_config = self._variants[name].generation_config
        if name == TUNED or self._model is self._base:
            yield
            return
        peft_model: Any = self._model
        with peft_model.disable_adapter():
            yield


class AnswerStreamer:
    """Passes on the text of an answer while `transformers` generates it. The parts together are the answer.

    A part may be withheld until the end: an incomplete character, and text that the next token changes.
    """

    def __init__(self, decoder: CompletionDecoder, on_text: Callable[[str], None]) -> None:
        self._decoder = decoder
        self._on_text = on_text
        self._ids: list[int] | None = None  # the first call has the prompt
        self._sent = ""

    def put(self, ids: Tensor) -> None:
        """Add the prompt, then each token of the answer."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += ids.flatten().tolist()
        text = self._decoder.decode(self._ids).text
        if text.startswith(self._sent) and not text.endswith(_INCOMPLETE_CHARACTER):
            self._send(text)

    def end(self) -> None:
        """Do nothing: `finish` gets the answer."""

    def finish(self, text: str) -> None:
        """Pass on the rest of the answer."""
        common = takewhile(lambda pair: pair[0] == pair[1], zip(self._sent, text, strict=False))
        self._sent = "".join(character for character, _ in common)
        self._send(text)

    def _send(self, text: str) -> None:
        if len(text) > len(self._sent):
            self._on_text(text[len(self._sent) :])
        self._sent = text


def _encode_last(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]]) -> list[int]:
    return encode_prompt(tokenizer, turns[-1]["content"])
