"""A two-layer Llama with its own vocabulary and random weights, built in a second without network."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Set before Hugging Face libraries are imported. HF_HUB_OFFLINE is not set: tests in this process use a fake hub.
QUIET_ENV = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
os.environ.update(QUIET_ENV)

TRAINING_TIMEOUT = 300
"""Timeout in seconds of tests that may be the first to import torch, which can take a minute on a busy machine."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The most common template. It does not change texts and has no generation markers."""
MARKED_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>"]
SPECIAL_TOKENS += ["<|start_header_id|>", "<|end_header_id|>"]
CORPUS = ["How do I turn the lamp on? Tap the top once.", "What is the capital of France? Paris is.", "Zażółć 😀 jaźń"]


def import_libraries() -> None:
    """Import the libraries of a training once, and ignore their import warnings.

    torchao has invalid escape sequences, and types of SWIG have no `__module__`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("torch", "transformers", "datasets", "peft", "trl", "transformers.models.llama.modeling_llama"):
            importlib.import_module(name)


@dataclass(frozen=True)
class StoredFile:
    """A downloaded object: its URI and its local path."""

    uri: str
    path: Path


def tokenizer(template: str | None = CHATML, bos: str | None = None) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 512 tokens. With `bos`, plain texts begin with that token, as in Llama."""
    import_libraries()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|im_end|>", bos_token=bos, model_max_length=512
    )
    fast_tokenizer.chat_template = template
    return fast_tokenizer


def build(
    folder: Path,
    template: str | None = CHATML,
    hidden: int = 64,
    layers: int = 2,
    custom_tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write the model with the same weights at each call. Return its folder. `words` is another tokenizer to store."""
    import_libraries()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # the model is small, and tests share the cores
    custom_tokenizer = custom_tokenizer or tokenizer(template)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(custom_tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=custom_tokenizer.pad_token_id,
        eos_token_id=custom_tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    custom_tokenizer.save_pretrained(folder)
    return folder


def config(training: Mapping[str, Any] | None = None, max_length: int = 128, **source: Any) -> TrainerConfig:
    """Return the config of a run on the CPU, with fields of `training` and of its only data source."""
    manifest = {
        "model": {"uri": "s3://models/tiny", "maxLength": max_length},
        "dataset": {"sources": [{"uri": "s3://data/train.jsonl", **source}]},
        "training": {"maxSteps": 4, "learningRate": 1e-2, **(training or {})},
        "output": {"uri": "s3://adapters/tiny"},
    }
    return TrainerConfig.model_validate(manifest)


def chat(*turns: str, system: str | None = None) -> dict[str, Any]:
    """Return a row of messages that begins with the user's."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(turns)]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def write_rows(path: Path, rows: Sequence[Any], uri: str = "s3://data/train.jsonl") -> StoredFile:
    """Write rows as JSON Lines; bytes and text are written unchanged. Return the object."""
    lines = [
        row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else _to_json_line(row) for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return StoredFile(uri, path)


def _to_json_line(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()
