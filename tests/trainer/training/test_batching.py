"""Tests of the order of rows by length, and of the padding of each way to form batches."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT

from finetune_trainer.training.batching import Batching, measure_lengths, measure_padding, order_by_length

LENGTHS = st.lists(st.integers(1, 2000), max_size=200)
SHAPES = st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**31 - 1), st.integers(0, 3))
"""Batch size, batches of a step, seed and epoch."""


def make_lognormal_lengths(count: int) -> list[int]:
    """Return lengths with a mean of about 300, as those of instruction data."""
    generator = random.Random(1)
    return [max(8, min(2048, round(generator.lognormvariate(5.38, 0.8)))) for _ in range(count)]


def make_retrieval_lengths(count: int) -> list[int]:
    """Return lengths of a mixture: one row in five has retrieved documents."""
    generator = random.Random(1)
    return [
        round(generator.gauss(1500, 200) if generator.random() < 0.2 else generator.uniform(100, 200))
        for _ in range(count)
    ]


def split(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, shape=SHAPES)
def test_order_by_length_has_each_row_once_and_is_deterministic(
    lengths: list[int], shape: tuple[int, int, int, int]
) -> None:
    batch_size, step_batches, seed, epoch = shape
    order = order_by_length(lengths, batch_size, batch_size * step_batches, seed, epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert order == order_by_length(lengths, batch_size, batch_size * step_batches, seed, epoch)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, shape=SHAPES)
def test_order_by_length_inside_a_step_is_longest_batch_first(
    lengths: list[int], shape: tuple[int, int, int, int]
) -> None:
    batch_size, step_batches, seed, epoch = shape
    order = order_by_length(lengths, batch_size, batch_size * step_batches, seed, epoch)
    for step in split(order, batch_size * step_batches):
        longest = [max(lengths[row] for row in batch) for batch in split(step, batch_size) if len(batch) == batch_size]
        assert longest == sorted(longest, reverse=True)


def test_order_by_length_seed_and_epoch_change_batches() -> None:
    lengths = make_lognormal_lengths(400)
    orders = [order_by_length(lengths, 4, 16, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0), (2, 1))]
    batch_sets = [{frozenset(batch) for batch in split(order, 4)} for order in orders]
    for index, batches in enumerate(batch_sets):
        for others in batch_sets[:index]:
            assert len(batches & others) < len(batches) / 10


def test_order_by_length_steps_mix_lengths() -> None:
    lengths = make_lognormal_lengths(4000)
    steps = split(order_by_length(lengths, 4, 32, 1, 0), 32)
    means = [sum(lengths[row] for row in step) / len(step) for step in steps]
    overall = sum(lengths) / len(lengths)
    assert sum(overall / 2 < mean < overall * 2 for mean in means) > 0.9 * len(means)


def test_order_by_length_smaller_last_batch_has_rows_of_any_length() -> None:
    lengths = list(range(1, 103))
    last_rows = [lengths[order_by_length(lengths, 4, 8, seed, 0)[-1]] for seed in range(40)]
    assert min(last_rows) < 34
    assert max(last_rows) > 68


@pytest.mark.parametrize("batch_size", [2, 4, 8])
@pytest.mark.parametrize("make_lengths", [make_lognormal_lengths, make_retrieval_lengths])
def test_measure_padding_by_length_is_below_8_percent(
    make_lengths: Callable[[int], list[int]], batch_size: int
) -> None:
    lengths = make_lengths(5000)
    shares = [measure_padding(lengths, batch_size, batching, 2048).share for batching in ("padded", "byLength")]
    assert shares[0] > 0.25
    assert shares[1] < 0.08


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=50), batch_size=st.integers(1, 5))
def test_measure_padding_computes_row_tokens_and_padding(lengths: list[int], batch_size: int) -> None:
    batchings: list[Batching] = ["padded", "byLength", "paddingFree", "packed"]
    measures = [measure_padding(lengths, batch_size, batching, 64) for batching in batchings]
    assert {measure.tokens - measure.padded_tokens for measure in measures} == {sum(lengths)}
    assert all(measure.padded_tokens >= 0 for measure in measures)
    assert measures[2].padded_tokens == 0


@pytest.mark.parametrize(
    ("batching", "tokens", "padded_tokens"),
    [("padded", 40, 20), ("byLength", 40, 20), ("paddingFree", 20, 0), ("packed", 20, 0)],
)
def test_measure_padding_single_batch_is_padded_to_longest_row(
    batching: Batching, tokens: int, padded_tokens: int
) -> None:
    measure = measure_padding([10, 2, 5, 3], 4, batching, 20)
    assert (measure.tokens, measure.padded_tokens) == (tokens, padded_tokens)


def test_measure_lengths_of_preferences_have_the_longest_answer() -> None:
    import datasets

    answers = {"chosen_ids": [[3], [4, 5, 6]], "rejected_ids": [[7, 8], [9]], "label": [True, False]}
    preferences = datasets.Dataset.from_dict({"prompt_ids": [[1, 2], [1]], **answers})
    assert measure_lengths(preferences).tolist() == [4, 4]
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3], [4, 5, 6]], "labels": [[1, 2], [3], [4, 5, 6]]})
    assert measure_lengths(rows).tolist() == [2, 1, 3]
    assert measure_lengths(rows.select([2, 0])).tolist() == [3, 2]
    assert measure_lengths(rows.select([])).tolist() == []


def test_measure_padding_without_rows_is_zero() -> None:
    assert measure_padding([], 4, "padded", 20).share == 0


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
def test_length_sampler_order_depends_on_the_epoch_and_padding_rows_are_last() -> None:
    from finetune_trainer.training.length_sampler import LengthSampler
    from finetune_trainer.training.padding_rows import PaddingRowsLastSampler

    lengths = make_lognormal_lengths(102)
    sampler = PaddingRowsLastSampler(LengthSampler(lengths, 4, 8, seed=3), 2)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert len(sampler) == 104
    assert orders[0][:102] == order_by_length(lengths, 4, 8, 3, 0)
    assert orders[0] == orders[2] != orders[1]
    assert all(order[102:] == [102, 103] for order in orders)


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
@pytest.mark.parametrize("row_count", [64, 83])
def test_length_sampler_steps_have_the_same_rows_for_any_number_of_ranks(row_count: int) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    from finetune_trainer.training.length_sampler import LengthSampler
    from finetune_trainer.training.padding_rows import PaddingRowsLastSampler

    lengths, steps_by_world_size = make_lognormal_lengths(row_count), []
    for world_size, accumulation in ((1, 4), (2, 2), (4, 1)):
        padding_row_count = -row_count % (2 * world_size)
        sampler = PaddingRowsLastSampler(LengthSampler(lengths, 2, 8, seed=3), padding_row_count)
        ranks = [
            list(BatchSamplerShard(BatchSampler(sampler, 2, False), world_size, rank)) for rank in range(world_size)
        ]
        steps = [
            {row for rank in ranks for batch in rank[start : start + accumulation] for row in batch if row < row_count}
            for start in range(0, len(ranks[0]), accumulation)
        ]
        steps_by_world_size.append(steps)
    assert steps_by_world_size[0] == steps_by_world_size[1] == steps_by_world_size[2]
