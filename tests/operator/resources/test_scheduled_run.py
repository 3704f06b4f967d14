"""The FineTuneJobs of a FineTuneSchedule, and what they are compared with."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.operator.schedule_samples import build_champion, build_digest, build_run, build_schedule

from finetune_operator.api import FineTuneJob
from finetune_operator.api.schedule import ScheduledRun
from finetune_operator.resources.child import parse_child
from finetune_operator.resources.scheduled_run import (
    add_champion,
    build_scheduled_run,
    build_template_run,
    choose_opponent,
)

Body = dict[str, Any]
BASELINE = {"name": "champion", "adapterURI": "s3://bucket/bot/bot-1", "digest": build_digest("bot-1")}


def _build_status(*names: str, **fields: Any) -> Body:
    champions = [build_champion(name, **fields).to_json() for name in names]
    return {"champion": champions[0], "champions": champions}


def _build(spec: Body | None = None, status: Body | None = None, run: ScheduledRun | None = None) -> FineTuneJob:
    return parse_child(build_scheduled_run(build_schedule(spec, status or _build_status("bot-1")), run or build_run()))


def _list_baselines(finetunejob: FineTuneJob) -> list[Body]:
    return [baseline.to_json() for baseline in finetunejob.spec.evaluation.baselines]


def test_scheduled_run_with_champion_measures_it_besides_the_baselines_of_the_template() -> None:
    own = {"name": "old", "adapterURI": "s3://bucket/old"}
    finetunejob = _build({"template": {"spec": {"evaluation": {"baselines": [own]}}}})
    assert _list_baselines(finetunejob) == [own, BASELINE]
    assert finetunejob.spec.model.adapter_uri is None


def test_scheduled_run_from_champion_continues_its_adapter() -> None:
    assert _build({"startFrom": "champion"}).spec.model.adapter_uri == "s3://bucket/bot/bot-1"


def test_scheduled_run_first_is_the_template() -> None:
    run = build_run(champion=None, champion_digest=None)
    finetunejob = _build({"startFrom": "champion"}, {"runs": []}, run)
    assert finetunejob.spec == build_template_run(build_schedule()).spec


@pytest.mark.parametrize(
    "template",
    [
        {"dataset": {"validation": None}},
        {"training": {"method": "dpo"}, "dataset": {"sources": [{"uri": "s3://b/d", "format": "preference"}]}},
    ],
    ids=["no validation data", "dpo"],
)
def test_scheduled_run_that_cannot_compare_has_no_baseline(template: Body) -> None:
    spec = {"promotion": {"mode": "manual"}, "startFrom": "champion", "template": {"spec": template}}
    finetunejob = _build(spec)
    assert finetunejob.spec.evaluation.baselines == []
    assert finetunejob.spec.model.adapter_uri == "s3://bucket/bot/bot-1"


def test_scheduled_run_built_again_after_a_promotion_is_the_same() -> None:
    earlier, later = _build(), _build(status=_build_status("bot-9", "bot-1"))
    assert earlier == later


def test_scheduled_run_of_template_with_another_model_is_compared_with_nothing() -> None:
    spec = {"startFrom": "champion", "template": {"spec": {"model": {"uri": "hf://org/other"}}}}
    finetunejob = _build(spec)
    assert finetunejob.spec.evaluation.baselines == []
    assert finetunejob.spec.model.adapter_uri is None


def test_add_champion_records_the_champion_of_now() -> None:
    new = build_run(champion=None, champion_digest=None)
    run = add_champion(new, build_schedule(status=_build_status("bot-1", "bot-0")))
    assert (run.champion, run.champion_digest) == ("bot-1", build_digest("bot-1"))
    assert add_champion(new, build_schedule()) == new


def test_choose_opponent_of_another_base_model_is_none() -> None:
    assert choose_opponent(build_schedule(status=_build_status("bot-1", model_uri="hf://org/other"))) is None
