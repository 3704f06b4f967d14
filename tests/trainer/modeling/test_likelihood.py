"""The losses of rows are those of the model's own logits, in each model family, and need little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer import model_families
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, config

from finetune_trainer.modeling.batch_limits import limit_loss_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from finetune_trainer.modeling.likelihood import LabeledTokens

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

FAMILIES = (
    "cohere2",
    "gemma2",
    "gpt2",
    "gpt_oss",
    "granite",
    "llama",
    "llama4_text",
    "mamba",
    "minicpm3",
    "mixtral",
    "mpt",
    "nemotron",
    "opt",
)
WHOLE_ROWS = {"llama4_text", "opt"}
"""Families whose class calls a part of its decoder, or whose decoder has the output head, so that all logits of a row
are in memory."""
ROW_LENGTHS = (300, 40, 170, 3, 90)
PEAK_SCRIPT = Path(__file__).with_name("measure_peak.py")


def make_rows(lengths: tuple[int, ...] = ROW_LENGTHS) -> list[LabeledTokens]:
    """Rows of arbitrary tokens, of which the first third is not supervised."""
    from finetune_trainer.modeling.likelihood import LabeledTokens

    ids = [[8 + 7919 * position % 250 for position in range(length)] for length in lengths]
    return [LabeledTokens(row, [-100] * (len(row) // 3) + row[len(row) // 3 :]) for row in ids]


def compute_expected_sums(model: PreTrainedModel | PeftModel, rows: list[LabeledTokens]) -> list[float]:
    """Return the summed loss of each row from the logits of all its tokens, one row at a time."""
    import torch

    sums = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float()
        labels = torch.tensor(row.labels[1:])
        sums.append(float(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum")))
    return sums


def load(folder: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_of_model_family_match_its_logits(tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str) -> None:
    model, rows = load(model_families.build_family(tmp_path / family, family)), make_rows()
    from finetune_trainer.modeling.likelihood import compute_losses

    losses = compute_losses(model, rows, lambda: None)
    assert losses.token_counts == [sum(label >= 0 for label in row.labels[1:]) for row in rows]
    for actual, expected, count in zip(
        losses.sums, compute_expected_sums(model, rows), losses.token_counts, strict=True
    ):
        assert actual / count == pytest.approx(expected / count, abs=1e-5)
    is_warned = "cannot be computed in chunks" in caplog.text
    assert is_warned == (family in WHOLE_ROWS)


def test_losses_of_adapter_on_output_head_match_its_logits(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from finetune_trainer.modeling.likelihood import compute_losses, measure_base_and_tuned

    torch.manual_seed(0)
    settings = LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model, rows = get_peft_model(load(build(tmp_path / "model")), settings).eval(), make_rows()
    base, tuned = measure_base_and_tuned(model, lambda: compute_losses(model, rows, lambda: None))
    assert tuned.sums == pytest.approx(compute_expected_sums(model, rows), rel=1e-5)
    with model.disable_adapter():
        assert base.sums == pytest.approx(compute_expected_sums(model, rows), rel=1e-5)
    assert tuned.sums != pytest.approx(base.sums, rel=1e-2)


def test_losses_of_other_logits_than_class_are_computed_from_whole_rows(tmp_path: Path) -> None:
    """A class whose logits also depend on the position, so that those of a chunk differ."""
    from typing import Any

    import torch
    from transformers import LlamaForCausalLM

    from finetune_trainer.modeling.likelihood import compute_losses

    class PositionScaledLlama(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.cumsum(1)
            return output

    build(tmp_path / "model")
    model, rows = PositionScaledLlama.from_pretrained(tmp_path / "model").eval(), make_rows()
    assert torch.is_tensor(model.lm_head.weight)
    losses = compute_losses(model, rows, lambda: None)
    assert losses.sums == pytest.approx(compute_expected_sums(model, rows), rel=1e-4)


def test_losses_peak_memory_is_at_most_that_of_training_step() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PEAK_SCRIPT)], capture_output=True, text=True, check=True, env=environment
    )
    training, evaluation = map(int, done.stdout.split())
    assert 0 < evaluation <= training
    assert training < 2048 * 128_000 * 4, "the training step does not hold the logits of all tokens"


@pytest.mark.parametrize(
    ("batch_size", "positions", "expected"), [(2, None, 256), (2, 100, 200), (64, None, 2048)], ids=str
)
def test_loss_batch_is_limited_to_tokens_of_training_step(
    batch_size: int, positions: int | None, expected: int
) -> None:
    assert limit_loss_tokens(config({"batchSize": batch_size}), positions) == expected
