"""Tiny models of the families in `tests/matrix/families.py`, with the tokenizer of the tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.matrix.families import build_config, build_model
from tests.support.trainer.tiny_model import CHATML, import_libraries, tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_family(folder: Path, family: str, template: str | None = CHATML, **shape: Any) -> Path:
    """Write a model of a family, with the same weights at each call. Return its folder. `shape` are fields of its
    config that differ from those of the list."""
    import_libraries()
    fast_tokenizer = tokenizer(template)
    ids = {
        "vocab_size": len(fast_tokenizer),
        "pad_token_id": fast_tokenizer.pad_token_id,
        "eos_token_id": fast_tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    build_model(build_config(family, ids, **shape), family).save_pretrained(folder)
    fast_tokenizer.save_pretrained(folder)
    return folder


def load_published_class(folder: Path) -> PreTrainedModel:
    """Load a model with the class that its config.json names, as servers do."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    model: PreTrainedModel = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def cross_entropy(folder: Path, rows: Mapping[str, Any]) -> float:
    """Return the mean cross-entropy of the supervised tokens in nats, from the model's logits, one row at a time."""
    import torch

    model, losses = load_published_class(folder), []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="none"))
    supervised_losses = torch.cat(losses)[
        torch.tensor([label for labels in rows["labels"] for label in labels[1:]]) != -100
    ]
    return float(supervised_losses.mean())
