"""Tests of packed rows: no row is lost, and each is trained as if it were not packed with others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.tiny_training import RunTraining, make_prepared_data

from finetune_trainer.training.batching import measure_lengths
from finetune_trainer.training.packing import pack

if TYPE_CHECKING:
    import torch

BATCHINGS = ("padded", "byLength", "paddingFree", "packed")


@pytest.mark.parametrize("lengths", [[3, 5, 8, 2, 2, 7], [8] * 3, [1] * 20, []], ids=["mixed", "full", "ones", "none"])
def test_pack_keeps_each_row_once_uncut(lengths: list[int]) -> None:
    sequences = pack(lengths, 8)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in sequence) <= 8 for sequence in sequences)
    assert len(sequences) <= math.ceil(sum(lengths) / 8) + 1


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
class TestPacked:
    def test_batching_losses_and_gradients_match_padded(
        self, run: RunTraining, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from finetune_trainer.training.methods.sft_trainer import TokenizedSFTTrainer

        train_batch, gradients = TokenizedSFTTrainer.training_step, {}

        def record_first_gradients(trainer: TokenizedSFTTrainer, model: torch.nn.Module, *args: object) -> torch.Tensor:
            loss: torch.Tensor = train_batch(trainer, model, *args)
            if trainer.state.global_step == 0:
                weights = model.named_parameters()
                gradients[trainer] = {name: weight.grad.clone() for name, weight in weights if weight.requires_grad}
            return loss

        monkeypatch.setattr(TokenizedSFTTrainer, "training_step", record_first_gradients)
        shape = {"batchSize": 2, "gradientAccumulation": 4, "gradientCheckpointing": False, "maxSteps": 3}  # all rows
        settings = [{}, {"packing": True}, *({"batching": batching} for batching in BATCHINGS)]
        padded, packed, *others = (run(source={"max_length": 24}, **shape, **setting) for setting in settings)
        assert others[0].losses == padded.losses
        assert others[-1].losses == packed.losses
        expected, *rest = gradients.values()
        assert len(rest) == 1 + len(others)
        for other, gradient in zip([packed, *others], rest, strict=True):
            assert other.losses == pytest.approx(padded.losses, abs=1e-5)
            assert max(float((gradient[name] - expected[name]).abs().max()) for name in expected) < 1e-5
            for metric in ("tokens", "supervisedTokens"):
                assert other.metrics[metric] == padded.metrics[metric]

    def test_padding_free_batch_is_one_sequence_without_padding_rows(self) -> None:
        from finetune_trainer.training.packing import PaddingFreeCollator

        rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}]
        padding_row = {"input_ids": [0], "labels": [-100]}
        batch = {name: tensor.tolist() for name, tensor in PaddingFreeCollator(0)([*rows, padding_row]).items()}
        assert batch == {
            "input_ids": [[5, 6, 7, 8, 9]],
            "labels": [[-100, 6, 7, -100, 9]],
            "position_ids": [[0, 1, 2, 0, 1]],
            "token_count": 5,
            "supervised_count": 4,
        }
        only_padding = {name: tensor.tolist() for name, tensor in PaddingFreeCollator(0)([padding_row] * 2).items()}
        assert (only_padding["input_ids"], only_padding["labels"], only_padding["token_count"]) == ([[0]], [[-100]], 0)

    @pytest.mark.parametrize("joins_sequences", [False, True])
    def test_packing_counts_tokens_as_without_packing(self, joins_sequences: bool) -> None:
        import datasets

        from finetune_trainer.training.packing import ROWS_COLUMN, PackingCollator

        rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}]
        collator = PackingCollator(datasets.Dataset.from_list(rows), 0, joins_sequences)
        batch = collator([{ROWS_COLUMN: [0]}, {ROWS_COLUMN: [1]}, {ROWS_COLUMN: []}])
        assert (int(batch["token_count"]), int(batch["supervised_count"])) == (5, 4)

    def test_packing_joined_sequences_are_one_without_padding(self) -> None:
        from finetune_trainer.training.packing import PackingCollator, pack_dataset

        rows = make_prepared_data("sft").dataset
        sequences = list(pack_dataset(measure_lengths(rows), 24))
        batch = PackingCollator(rows, 0, joins_sequences=True)(sequences)
        tokens = [token for sequence in sequences for number in sequence["rows"] for token in rows[number]["input_ids"]]
        assert batch["input_ids"].tolist() == [tokens]
        assert int((batch["position_ids"] == 0).sum()) == len(rows)
        assert int(batch["token_count"]) == len(tokens)

    def test_packing_row_logits_match_unpacked(self, run: RunTraining) -> None:
        import torch

        from finetune_trainer.training.packing import PackingCollator, pack_dataset

        rows = make_prepared_data("sft").dataset
        sequences = pack_dataset(measure_lengths(rows), 24)  # several, so that there is padding too
        batch = PackingCollator(rows, 0)(list(sequences))
        del batch["token_count"], batch["supervised_count"], batch["labels"]
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
