"""Tests of objects that another version has written, or that are hostile."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.operator.builders import build_finetunejob

from finetune_operator.api import FineTuneJob
from finetune_operator.client import ClientError, summarize_job, wait_condition_of
from finetune_operator.client.parsing import parse_object

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
STATUS_FIELDS = ["phase", "conditions", "progress", "result", "dataset", "logURI", "attempts", "stepResult", "newer"]
CONDITION = {
    "type": "Complete", "status": "True", "reason": "Completed", "message": "done", "observedGeneration": 1,
    "lastTransitionTime": "2026-12-01T00:00:00Z",
}  # fmt: skip


def _parse(status: object) -> FineTuneJob:
    return parse_object(FineTuneJob, {**build_finetunejob(), "status": status})


def test_parse_newer_fields_are_left_out() -> None:
    body = build_finetunejob(spec={"newer": 1, "training": {"epochs": 1, "newerOption": [1, 2]}})
    job = parse_object(FineTuneJob, {**body, "status": {"phase": "Complete", "newer": {"a": 1}}})
    assert job.status is not None
    assert (job.status.phase, job.spec.training.epochs) == ("Complete", 1)


def test_parse_invalid_items_are_left_out_and_others_kept() -> None:
    broken = [{"type": "A"}, {**CONDITION, "type": "B", "status": "Maybe"}, 3]
    job = _parse({"conditions": [*broken, CONDITION, *copy.deepcopy(broken)], "phase": "Exploded", "attempts": -1})
    assert job.status is not None
    assert "Complete" in [condition.type for condition in job.status.conditions]
    assert wait_condition_of(job) == "Complete"
    assert job.status.phase is None


@given(status=JSON | st.dictionaries(st.sampled_from(STATUS_FIELDS), JSON, max_size=6))
def test_parse_random_status_gives_a_summary(status: object) -> None:
    assert summarize_job(_parse(status)).name == "bot"


def test_parse_spec_of_other_version_is_one_line() -> None:
    body = build_finetunejob(spec={"training": {"epochs": "\x1b[31m many"}})
    with pytest.raises(ClientError, match=r"FineTuneJob bot cannot be read .*training\.epochs.*install") as caught:
        parse_object(FineTuneJob, body)
    assert "\x1b" not in str(caught.value)


def test_summarize_suspended_run_has_message_of_its_condition() -> None:
    running = {**CONDITION, "type": "Running", "status": "False", "message": "see Suspended"}
    suspended = {**CONDITION, "type": "Suspended", "reason": "BudgetExhausted", "message": "the budget is used up"}
    summary = summarize_job(_parse({"conditions": [running, suspended], "phase": "Suspended"}))
    assert (summary.phase, summary.reason, summary.message) == (
        "Suspended", "BudgetExhausted", "the budget is used up",
    )  # fmt: skip
