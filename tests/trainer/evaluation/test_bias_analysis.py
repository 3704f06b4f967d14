"""Planted effects are flagged, chance is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator
from numpy.typing import NDArray

from finetune_trainer.evaluation.bias.analysis import LogLikelihood, compute_preference, judge_bias
from finetune_trainer.evaluation.findings import BiasPreferences
from finetune_trainer.records.evaluation import BiasResult

CATEGORIES = ["gender", "age", "religion", "nationality", "race", "disability", "socioeconomic"]
Noise = Callable[[Generator, int], NDArray[np.float64]]

NOISE: dict[str, Noise] = {
    "normal": lambda rng, count: rng.normal(0, 0.1, count),
    "with outliers": lambda rng, count: rng.standard_t(2, count) * 0.1,
    "two values": lambda rng, count: rng.choice([-0.01, 0.01], count),
    "mostly nothing": lambda rng, count: rng.normal(0, 0.1, count) * (rng.random(count) < 0.3),
}


def make_preferences(kind: str, category: str, base: Sequence[float], tuned: Sequence[float]) -> BiasPreferences:
    return BiasPreferences("swap" if kind == "swap" else "pair", category, base, tuned)


def make_random_bias(
    rng: Generator, noise: Noise, planted: float = 0.0, planted_category: str = "gender"
) -> BiasResult:
    """Judge 14 comparisons whose preferences change randomly, one of them with a planted effect."""
    every = []
    for kind in ("pair", "swap"):
        for category in CATEGORIES:
            count = int(rng.integers(20, 60))
            base = rng.normal(0.2, 1.0, count)
            effect = planted if (kind, category) == ("pair", planted_category) else 0.0
            tuned = base + noise(rng, count) + effect
            every.append(make_preferences(kind, category, base.tolist(), tuned.tolist()))
    return judge_bias(every, {})


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_bias_200_unchanged_runs_flags_at_most_10(noise: Noise) -> None:
    # In 2,000 runs 2.1, 1.3, 2.5 and 0.5 % were flagged for the four kinds of noise. With other seeds, 11 of 200 occur.
    rng = np.random.default_rng(1)
    flagged = sum(any(finding.flagged for finding in make_random_bias(rng, noise).findings) for _ in range(200))
    assert flagged <= 10


def test_bias_correction_reduces_false_flags() -> None:
    rng = np.random.default_rng(7)
    runs = [make_random_bias(rng, NOISE["normal"]) for _ in range(50)]
    assert sum(any((finding.change.low or 0) > 0 for finding in run.findings) for run in runs) > 7
    assert sum(any(finding.flagged for finding in run.findings) for run in runs) <= 2


@pytest.mark.parametrize("category", CATEGORIES)
def test_bias_planted_effect_is_always_flagged(category: str) -> None:
    rng = np.random.default_rng(8)
    for _ in range(5):
        analysis = make_random_bias(rng, NOISE["normal"], planted=0.2, planted_category=category)
        assert {(finding.kind, finding.category) for finding in analysis.findings if finding.flagged} >= {
            ("pair", category)
        }


def test_bias_preference_decrease_is_not_flagged() -> None:
    analysis = make_random_bias(np.random.default_rng(8), NOISE["normal"], planted=-0.3)
    finding = analysis.findings[0]
    assert finding.change.high is not None
    assert finding.change.high < 0
    assert not finding.flagged
    assert "decreased" in finding.message


@given(st.lists(st.floats(-5, 5), min_size=20, max_size=40))
def test_bias_preference_of_base_model_is_not_flagged(base: list[float]) -> None:
    [finding] = judge_bias([make_preferences("pair", "gender", base, base)], {}).findings
    assert (finding.flagged, finding.change.value) == (False, 0.0)


def test_bias_rounding_difference_is_not_flagged() -> None:
    base = [0.5] * 30
    assert (
        not judge_bias([make_preferences("pair", "gender", base, [value + 1e-9 for value in base])], {})
        .findings[0]
        .flagged
    )


@given(
    st.floats(-100, -1),
    st.floats(-100, -1),
    st.integers(1, 30),
    st.integers(1, 30),
    st.floats(-1, 1),
)
def test_preference_constant_shift_per_token_is_unchanged(
    first: float, second: float, tokens: int, others: int, shift: float
) -> None:
    before = compute_preference(LogLikelihood(first, tokens), LogLikelihood(second, others))
    after = compute_preference(
        LogLikelihood(first + shift * tokens, tokens), LogLikelihood(second + shift * others, others)
    )
    assert after == pytest.approx(before, abs=1e-9)


def test_preference_likelier_first_text_is_positive() -> None:
    assert compute_preference(LogLikelihood(-10, 10), LogLikelihood(-24, 12)) == pytest.approx(1.0)


def test_bias_too_few_pairs_are_noted_and_not_judged() -> None:
    many = [0.01 * index for index in range(30)]
    few = make_preferences("pair", "age", [0.0] * 7, [5.0] * 7)
    gender = make_preferences("swap", "gender", many, many[::-1])
    alone = judge_bias([gender], {})
    analysis = judge_bias([gender, few], {"gender": {"female": 3}})
    assert analysis.notes == ["pairs about age: too few, 7 of 20"]
    assert analysis.findings == alone.findings
    assert analysis.representation == {"gender": {"female": 3}}


MESSAGES = {
    "a pair that grew": ("pair", 0.5, "gender: the preference for the stereotype over its counterpart increased (+0.5"),
    "a swap that grew": ("swap", 0.5, "gender: the preference for the texts of the data over the same texts"),
    "nothing": ("pair", 0.0, "gender: the preference for the stereotype over its counterpart did not clearly change"),
}


@pytest.mark.parametrize(("kind", "shift", "words"), MESSAGES.values(), ids=MESSAGES)
def test_bias_message_names_kind_and_direction(kind: str, shift: float, words: str) -> None:
    base = [0.01 * (-1) ** index for index in range(30)]
    tuned = [-value + shift for value in base]
    [finding] = judge_bias([make_preferences(kind, "gender", base, tuned)], {}).findings
    assert finding.message.startswith(words)
    assert finding.message.endswith("30 pairs).")
