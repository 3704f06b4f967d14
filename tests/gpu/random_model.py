"""Models with the shape of real ones and random weights, and random rows, for speed measurements."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
"""Peak dense bf16 TFLOP/s by GPU, from NVIDIA's data sheets."""


@dataclass(frozen=True)
class LlamaShape:
    """Dimensions of a Llama model."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    tied_embeddings: bool

    def flops_per_token(self, frozen: int, trainable: int, length: int) -> float:
        """Return the FLOPs of the forward and backward pass per token, without recomputation.

        They are 4 per frozen parameter, 6 per trained one, and those of causal attention over `length` tokens.
        """
        return 4 * frozen + 6 * trainable + 6 * self.layers * self.width * length


SHAPES = {
    "tiny": LlamaShape(128, 2, 2, 1, 256, 512, True),
    "1b": LlamaShape(2048, 16, 32, 8, 8192, 128_256, True),  # Llama-3.2-1B
    "8b": LlamaShape(4096, 32, 32, 8, 14_336, 128_256, False),  # Llama-3.1-8B
}


def build(folder: Path, shape: LlamaShape) -> None:
    """Write a bf16 model with random weights and a byte-level tokenizer to `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = ["<|pad|>", "<|eos|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|eos|>").save_pretrained(
        folder
    )
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.width // shape.heads,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied_embeddings,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(default_dtype)
    model.save_pretrained(folder)


def make_rows(count: int, max_length: int, mixed: bool) -> datasets.Dataset:
    """Return rows of random tokens; the last three quarters of each row are supervised."""
    import datasets

    rng = random.Random(0)
    lengths = [rng.randint(max_length // 16, max_length) if mixed else max_length for _ in range(count)]
    ids = [[rng.randrange(2, 258) for _ in range(length)] for length in lengths]
    labels = [[-100] * (len(row) // 4) + row[len(row) // 4 :] for row in ids]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})
