"""The decision whether a run of a FineTuneSchedule becomes the champion."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.operator.schedule_samples import (
    build_champion,
    build_change,
    build_comparison,
    build_complete_run,
    build_digest,
    build_run,
    build_schedule,
)

from finetune_operator.api.schedule import Champion, PromotionRule
from finetune_operator.status.schedules.promotion import Decision, decide, is_better
from finetune_trainer.contract import MetricChange

Body = dict[str, Any]
CHAMPION = build_champion()
LOSS = {"higherIsBetter": False, "baseline": 1.5, "value": 1.4, "change": -0.1, "low": -0.15, "high": -0.05}
LOSS_RULE = {"promotion": {"rules": [{"metric": "evalLoss"}]}}


def _decide(
    spec: Body | None = None, champion: Champion | None = CHAMPION, run: Body | None = None, **result: Any
) -> Decision:
    return decide(build_schedule(spec).spec, build_run(**(run or {})), build_complete_run(**result), champion)


def _compare(*changes: Body, **fields: Any) -> Body:
    return {"baselines": [build_comparison(*changes, **fields)]}


DECISIONS: dict[str, tuple[Body, str, str]] = {
    "better": ({}, "Promoted", "accuracy 0.8 → 0.9, change +0.1 [+0.02, +0.18]."),
    "lower loss": ({"spec": LOSS_RULE, **_compare(build_change("evalLoss", **LOSS))}, "Promoted", "change -0.1"),
    "higher loss": (
        {"spec": LOSS_RULE, **_compare(build_change("evalLoss", **LOSS | {"high": 0.01}))},
        "NotBetter",
        "evalLoss 1.5 → 1.4, change -0.1 [-0.15, +0.01]: the upper end must be below 0.",
    ),
    "interval contains zero": (
        _compare(build_change(low=-0.01)),
        "NotBetter",
        "accuracy 0.8 → 0.9, change +0.1 [-0.01, +0.18]: the lower end must be above 0.",
    ),
    "tie": (_compare(build_change(value=0.8, change=0, low=0, high=0)), "NotBetter", "above 0"),
    "lower end equal to minImprovement": (
        {"spec": {"promotion": {"rules": [{"metric": "accuracy", "minImprovement": 0.02}]}}},
        "NotBetter",
        "the lower end must be above 0.02",
    ),
    "loss above minImprovement": (
        {
            "spec": {"promotion": {"rules": [{"metric": "evalLoss", "minImprovement": 0.06}]}},
            **_compare(build_change("evalLoss", **LOSS)),
        },
        "NotBetter",
        "the upper end must be below -0.06",
    ),
    "few rows": (
        _compare(build_change(low=None, high=None, pValue=0.01, samples=12)),
        "NotMeasured",
        "accuracy 0.8 → 0.9, change +0.1: 12 rows are too few for an interval.",
    ),
    "value of few rows": (
        {
            "spec": {"promotion": {"rules": [{"metric": "accuracy", "use": "value"}]}},
            **_compare(build_change(low=None, high=None)),
        },
        "Promoted",
        "accuracy 0.8 → 0.9",
    ),
    "equal value": (
        {
            "spec": {"promotion": {"rules": [{"metric": "accuracy", "use": "value"}]}},
            **_compare(build_change(value=0.8, change=0)),
        },
        "Promoted",
        "change +0",
    ),
    "value below minImprovement": (
        {"spec": {"promotion": {"rules": [{"metric": "accuracy", "use": "value", "minImprovement": 0.2}]}}},
        "NotBetter",
        "the change must be at least 0.2",
    ),
    "loss by value": (
        {
            "spec": {"promotion": {"rules": [{"metric": "evalLoss", "use": "value", "minImprovement": 0.2}]}},
            **_compare(build_change("evalLoss", **LOSS)),
        },
        "NotBetter",
        "the change must be at most -0.2",
    ),
    "one of two rules": (
        {
            "spec": {"promotion": {"rules": [{"metric": "accuracy"}, {"metric": "macroF1"}]}},
            **_compare(build_change(), build_change("macroF1", low=-0.1)),
        },
        "NotBetter",
        "accuracy 0.8 → 0.9, change +0.1 [+0.02, +0.18]; macroF1",
    ),
    "rule not compared": (
        {"spec": {"promotion": {"rules": [{"metric": "accuracy"}, {"metric": "macroF1"}]}}},
        "NotMeasured",
        "macroF1 was not compared",
    ),
    "not better although not compared": (
        {
            "spec": {"promotion": {"rules": [{"metric": "macroF1"}, {"metric": "accuracy"}]}},
            **_compare(build_change(low=-0.1)),
        },
        "NotBetter",
        "macroF1 was not compared",
    ),
    "rows not held out": (_compare(build_change(), heldOut=False), "HeldOutRowsChanged", "bot-1 may have been trained"),
    "no comparison": ({"baselines": None}, "NotMeasured", "has not measured the champion bot-1"),
    "comparison of others": (_compare(build_change(), name="other"), "NotMeasured", "has not measured the champion"),
    "comparison with another digest": (
        _compare(build_change(), digest=build_digest("x")),
        "NotMeasured",
        "has not measured the champion",
    ),
    "champion changed": (
        {"champion": build_champion("bot-0")},
        "ChampionChanged",
        "was compared with bot-1; the champion is bot-0 now",
    ),
    "champion trained again": (
        {"champion": build_champion(digest=build_digest("x"))},
        "ChampionChanged",
        "the champion is bot-1 now",
    ),
    "champion set meanwhile": (
        {"run": {"champion": None, "champion_digest": None}},
        "ChampionChanged",
        "compared with no champion",
    ),
    "another base model": (
        {"model_uri": "hf://org/other", "run": {"champion": None, "champion_digest": None}},
        "NotComparable",
        "hf://org/other at 0123abc, that of the champion bot-1 is hf://org/name at 0123abc",
    ),
    "another revision": ({"modelRevision": "4567def"}, "NotComparable", "hf://org/name at 4567def"),
    "forgetting": (
        {"verdicts": {"forgetting": "forgetting", "bias": "none", "overfitting": "none"}},
        "Vetoed",
        "has found forgetting",
    ),
    "bias that is no veto": ({"verdicts": {"forgetting": "none", "bias": "bias"}}, "Promoted", "accuracy"),
    "bias": (
        {
            "spec": {"promotion": {"vetoes": ["bias", "overfitting"]}},
            "verdicts": {"bias": "bias", "overfitting": "overfitting"},
        },
        "Vetoed",
        "has found bias, overfitting",
    ),
    "veto without verdict": ({"verdicts": {}}, "NotMeasured", "could not tell forgetting"),
    "verdicts of an earlier version": ({"verdicts": None}, "NotMeasured", "could not tell forgetting"),
    "verdict without veto": ({"spec": {"promotion": {"vetoes": []}}, "verdicts": None}, "Promoted", "accuracy"),
    "first": ({"champion": None}, "Promoted", "It is the first run"),
    "first vetoed": ({"champion": None, "verdicts": {"forgetting": "forgetting"}}, "Vetoed", "forgetting"),
    "first not measured": ({"champion": None, "metrics": {"evalLoss": 1.0}}, "NotMeasured", "not measured accuracy"),
    "manual": (
        {"spec": {"promotion": {"mode": "manual"}}},
        "AwaitingApproval",
        "By the rules: Promoted: accuracy 0.8 → 0.9, change +0.1 [+0.02, +0.18]. Set spec.champion.run to bot-2",
    ),
    "manual first": (
        {"spec": {"promotion": {"mode": "manual"}}, "champion": None, "verdicts": None},
        "AwaitingApproval",
        "NotMeasured",
    ),
    "manual after an approval": (
        {"spec": {"promotion": {"mode": "manual"}, "champion": {"run": "bot-1"}}},
        "AwaitingApproval",
        "to approve the run",
    ),
    "pinned": (
        {"spec": {"champion": {"run": "bot-1"}}},
        "Pinned",
        "spec.champion.run is bot-1. By the rules: Promoted: accuracy",
    ),
    "set before its decision": (
        {"spec": {"champion": {"run": "bot-2"}}, "champion": build_champion("bot-2"), "verdicts": None},
        "Promoted",
        "spec.champion.run has set this run",
    ),
}


@pytest.mark.parametrize(("case", "reason", "message"), DECISIONS.values(), ids=DECISIONS)
def test_decide_returns_reason_with_numbers(case: Body, reason: str, message: str) -> None:
    decision = _decide(**case)
    assert decision.reason == reason, decision.message
    assert message in decision.message


def test_decide_keeps_metrics_and_changes_of_the_rules_only() -> None:
    decision = _decide(**_compare(build_change(), build_change("macroF1")))
    assert decision.metrics == {"accuracy": 0.9}
    assert [change.metric for change in decision.changes] == ["accuracy"]


def test_decide_metric_that_the_result_lacks_is_that_of_the_comparison() -> None:
    assert _decide(metrics={}).metrics == {"accuracy": 0.9}


NUMBERS = st.floats(-1, 1)
VERDICTS = st.fixed_dictionaries({name: st.sampled_from(["none", name, "unknown"]) for name in ("forgetting", "bias")})


@given(low=NUMBERS, width=st.floats(0, 1), higher=st.booleans(), minimum=NUMBERS, held_out=st.booleans(), said=VERDICTS)
def test_decide_promotes_exactly_what_is_certainly_better(
    low: float, width: float, higher: bool, minimum: float, held_out: bool, said: dict[str, str]
) -> None:
    high = low + width
    change = {"higherIsBetter": higher, "change": low, "low": low, "high": high}
    vetoes = ["forgetting", "bias"]
    spec = {"promotion": {"rules": [{"metric": "accuracy", "minImprovement": minimum}], "vetoes": vetoes}}
    decision = _decide(spec, verdicts=said, **_compare(build_change(**change), heldOut=held_out))
    worst = low if higher else -high
    is_certain = worst > minimum and held_out and set(said.values()) == {"none"}
    assert (decision.reason == "Promoted") == is_certain


@given(low=NUMBERS, change=NUMBERS, high=NUMBERS, minimum=NUMBERS, use=st.sampled_from(["lowerBound", "value"]))
def test_is_better_of_a_loss_is_that_of_its_negative(
    low: float, change: float, high: float, minimum: float, use: Literal["lowerBound", "value"]
) -> None:
    rule = PromotionRule(metric="evalLoss", min_improvement=minimum, use=use)
    values = {"metric": "evalLoss", "baseline": 0.0, "value": 0.0, "samples": 9}
    loss = MetricChange(higher_is_better=False, change=change, low=low, high=high, **values)
    gain = MetricChange(higher_is_better=True, change=-change, low=-high, high=-low, **values)
    assert is_better(loss, rule) == is_better(gain, rule)
