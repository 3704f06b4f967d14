"""Compares Liger's kernels with transformers, in loss and gradients: `python -m tests.matrix.kernels [family ...]`.

The kernels run in Triton's interpreter, on a CPU. A GPU computes the same in another order.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tests.matrix.families import build_config, build_model
from tests.support.trainer.interpreted_kernels import interpret_kernels
from tests.support.trainer.tiny_model import config

from finetune_trainer.modeling.import_guard import hide_optional_packages
from finetune_trainer.modeling.kernels import LIGER_FAMILIES

if TYPE_CHECKING:
    import torch

_TOKEN_IDS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LENGTHS = (6, 4)
"""Tokens of the rows of the padded batch."""
_PROMPT_LENGTH = 2


@dataclass(frozen=True)
class Difference:
    """The largest differences between Liger and transformers."""

    loss: float
    gradient: float

    @property
    def is_rounding(self) -> bool:
        """Whether they are as small as those of rounding in 32 bits."""
        return self.loss <= 1e-5 and self.gradient <= 1e-4


def measure_difference(family: str) -> Difference:
    """Compute a forward and a backward pass of a tiny model with an adapter, with the modules of transformers and with
    Liger's kernels, which also compute the loss."""
    with TemporaryDirectory() as folder, hide_optional_packages("transformers", "none"):
        model = build_model(build_config(family, _TOKEN_IDS), family)
        model.save_pretrained(folder)
        loss, gradients = compute_gradients("standard", Path(folder))
        with interpret_kernels(type(model)):
            liger_loss, liger_gradients = compute_gradients("liger", Path(folder))
    assert gradients.keys() == liger_gradients.keys()
    assert all(gradient.any() for gradient in gradients.values())
    gradient = max(float((gradients[name] - liger_gradients[name]).abs().max()) for name in gradients)
    return Difference(abs(loss - liger_loss), gradient)


def compute_gradients(kernels: str, model_dir: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of a padded batch, and the gradients of the adapter by the name of the parameter."""
    import torch

    from finetune_trainer.modeling.loading import load_model

    model = load_model(config({"kernels": kernels, "lora": {"rank": 4}}), model_dir, "transformers").train()
    torch.manual_seed(1)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for name, weight in weights.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    output = model(**_make_batch(), use_cache=False)
    assert (output.logits is None) == (kernels == "liger")
    output.loss.backward()
    return output.loss.item(), {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def _make_batch() -> dict[str, Any]:
    import torch

    shape = (len(_LENGTHS), max(_LENGTHS))
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for row, length in enumerate(_LENGTHS):
        attention_mask[row, :length] = 1
    input_ids = torch.randint(3, _TOKEN_IDS["vocab_size"], shape, generator=torch.Generator().manual_seed(0))
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    labels[:, :_PROMPT_LENGTH] = -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "num_items_in_batch": 7}


def main() -> int:
    """Print the differences of each family. Return 1 if one of them is more than rounding."""
    warnings.simplefilter("ignore")
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of Triton
    has_failed = False
    for family in sys.argv[1:] or LIGER_FAMILIES:
        difference = measure_difference(family)
        has_failed |= not difference.is_rounding
        print(f"{family}: loss {difference.loss:.1e}, gradient {difference.gradient:.1e}", flush=True)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
