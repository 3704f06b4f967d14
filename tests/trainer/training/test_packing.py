"""Tests of packed rows: no row is lost, and each is trained as if it were not packed with others."""

from __future__ import annotations

import math

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.tiny_training import RunTraining, make_prepared_data

from finetune_trainer.training.packing import pack


@pytest.mark.parametrize("lengths", [[3, 5, 8, 2, 2, 7], [8] * 3, [1] * 20, []], ids=["mixed", "full", "ones", "none"])
def test_pack_keeps_each_row_once_uncut(lengths: list[int]) -> None:
    sequences = pack(lengths, 8)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in sequence) <= 8 for sequence in sequences)
    assert len(sequences) <= math.ceil(sum(lengths) / 8) + 1


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
class TestPacked:
    def test_packing_losses_match_unpacked(self, run: RunTraining) -> None:
        # Eight rows fit into one sequence; all of them are one step either way.
        packed = run(packing=True, batchSize=2, maxSteps=3)
        plain = run(batchSize=8, maxSteps=3)
        assert packed.losses == pytest.approx(plain.losses, abs=1e-4)
        assert packed.metrics["tokens"] == plain.metrics["tokens"]

    def test_packing_row_logits_match_unpacked(self, run: RunTraining) -> None:
        import torch

        from finetune_trainer.training.packing import PackingCollator, pack_dataset

        rows = make_prepared_data("sft").dataset
        sequences = pack_dataset(rows, 24)  # several, so that there is padding too
        batch = PackingCollator(rows, 0)(list(sequences))
        del batch["token_count"], batch["labels"]
        model = run(maxSteps=1).model.eval()
        with torch.no_grad():
            together = model(**batch, use_cache=False).logits
            for line, sequence in enumerate(sequences):
                start = 0
                for number in sequence["rows"]:
                    ids = rows[number]["input_ids"]
                    alone = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
                    assert torch.allclose(together[line, start : start + len(ids)], alone, atol=1e-4)
                    start += len(ids)
