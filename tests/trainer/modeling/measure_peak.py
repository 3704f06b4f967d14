"""Prints by how many bytes the peak memory grows in a training step, and in the evaluation of the same row."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

from finetune_trainer.modeling.likelihood import LabeledTokens, compute_losses

if TYPE_CHECKING:
    from peft import PeftModel

TOKENS, VOCABULARY = 2048, 128_000


def main() -> None:
    """Do each work in a process of its own, which starts with the imported libraries and the model."""
    model, ids = build_model(), [token % VOCABULARY for token in range(TOKENS)]
    for run in (train_step, evaluate):
        if os.fork() == 0:
            print(measure_growth(model, ids, run), flush=True)
            os._exit(0)
        os.wait()


def measure_growth(model: PeftModel, ids: list[int], run: Callable[[PeftModel, list[int]], None]) -> int:
    """Return the growth of the peak in bytes, after a warm-up on a short row."""
    run(model, ids[:16])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(model, ids)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def build_model() -> PeftModel:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=TOKENS,
    )
    return get_peft_model(LlamaForCausalLM(shape), LoraConfig(target_modules=["q_proj", "v_proj"]))


def train_step(model: PeftModel, ids: list[int]) -> None:
    """One step with TRL's chunked loss."""
    base_model = model.get_base_model()
    _patch_chunked_ce_lm_head(base_model, chunk_size=256)
    tokens = torch.tensor([ids])
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss.backward()
    optimizer.step()
    del base_model.forward


def evaluate(model: PeftModel, ids: list[int]) -> None:
    """The loss of the row, as in the evaluation after the training."""
    compute_losses(model, [LabeledTokens(ids, ids)], lambda: None)


if __name__ == "__main__":
    main()
