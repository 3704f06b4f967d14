"""What is recorded about the runs of a schedule, and which ones are kept."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.support.operator.schedule_builders import (
    CREATED,
    DIGEST,
    TEMPLATE_HASH,
    build_child,
    build_run,
    build_schedule,
    build_status,
)

from finetune_operator.status.schedules.runs import (
    add_run,
    build_run_name,
    can_add_run,
    compute_template_hash,
    list_active_names,
    record_end,
    replace_run,
)

RESULT = {"adapterURI": "s3://bucket/bot/run/adapter", "digest": DIGEST, "modelRevision": "main"}


def test_build_run_name_of_time_has_minutes_since_1970() -> None:
    assert build_run_name("bot", datetime(1970, 1, 2, 0, 1, 59, tzinfo=UTC)) == "bot-1441"


@pytest.mark.parametrize(
    ("spec", "is_same"),
    [
        ({"template": {"metadata": {"labels": {"team": "a"}}}}, True),
        ({"schedule": "@daily", "suspend": True}, True),
        ({"template": {"spec": {"backoffLimit": 3}}}, True),  # the default
        ({"template": {"spec": {"training": {"epochs": 2}}}}, False),
        ({"template": {"spec": {"dataset": {"sources": [{"uri": "s3://bucket/other"}]}}}}, False),
        ({"startFrom": "champion"}, False),
    ],
)
def test_compute_template_hash_depends_on_what_is_trained(spec: dict[str, object], is_same: bool) -> None:
    value = compute_template_hash(build_schedule(spec).spec)
    assert (value == TEMPLATE_HASH) is is_same
    assert len(value) == 16
    assert int(value, 16) >= 0


def test_compute_template_hash_of_stored_template_never_changes() -> None:
    """Another value would make all results look outdated after an upgrade, also if a field with a default is new."""
    assert TEMPLATE_HASH == "e3877a40c8d982a7"


def test_record_end_of_complete_run_has_result() -> None:
    child = build_child("bot-1", "Complete", reason="Completed", completionTime=CREATED, result=RESULT)
    ended = record_end(build_run("bot-1", None), child, "2026-11-24T08:00:00Z")
    assert (ended.phase, ended.reason, ended.completion_time) == ("Complete", "Completed", CREATED)
    assert (ended.adapter_uri, ended.digest) == (RESULT["adapterURI"], DIGEST)


@pytest.mark.parametrize("condition_type", ["Failed", "Cancelled"])
def test_record_end_of_other_run_has_no_result(condition_type: str) -> None:
    ended = record_end(build_run("bot-1", None), build_child("bot-1", condition_type, result=RESULT), CREATED)
    assert (ended.phase, ended.digest, ended.completion_time) == (condition_type, None, CREATED)


def test_record_end_with_invalid_result_records_the_end_alone() -> None:
    child = build_child("bot-1", "Complete", result={**RESULT, "digest": "md5:1"})
    ended = record_end(build_run("bot-1", None), child, CREATED)
    assert (ended.phase, ended.digest) == ("Complete", None)


def test_record_end_without_finetunejob_is_deleted() -> None:
    assert record_end(build_run("bot-1", None), None, CREATED).phase == "Deleted"


def test_record_end_of_running_run_changes_nothing() -> None:
    run = build_run("bot-1", None)
    assert record_end(run, build_child("bot-1"), CREATED) == run


def test_replace_run_with_complete_one_sets_last_successful_time() -> None:
    status = build_status(build_run("bot-2", None), build_run("bot-1", completion_time="2026-11-20T00:00:00Z"))
    assert replace_run(status, build_run("bot-2")).last_successful_time == CREATED
    assert replace_run(status, build_run("bot-2", "Failed")).last_successful_time == "2026-11-20T00:00:00Z"


def test_add_run_above_20_drops_the_oldest_that_is_not_needed() -> None:
    failed = [build_run(f"bot-{index}", "Failed") for index in range(20, 3, -1)]
    needed = [build_run("bot-3", None), build_run("bot-2", decision="NotBetter"), build_run("bot-1")]
    status = add_run(build_status(*failed, *needed), build_run("bot-21", None, created=False))
    assert [run.name for run in status.runs] == [f"bot-{index}" for index in (*range(21, 4, -1), 3, 2, 1)]


def test_add_run_replaces_one_that_was_not_created() -> None:
    status = build_status(build_run("bot-2", None, created=False), build_run("bot-1"))
    assert [run.name for run in add_run(status, build_run("bot-3", None)).runs] == ["bot-3", "bot-1"]


def test_can_add_run_with_20_undecided_runs_is_false() -> None:
    runs = [build_run(f"bot-{index}") for index in range(20)]
    assert not can_add_run(build_status(*runs))
    assert can_add_run(build_status(*runs[1:], build_run("bot-20", "Failed")))


def test_list_active_names_includes_unknown_finetunejobs() -> None:
    status = build_status(build_run("bot-3", None, created=False), build_run("bot-2", None), build_run("bot-1"))
    children = [build_child("bot-1", "Complete"), build_child("bot-0")]
    assert list_active_names(status, children) == ["bot-0", "bot-2"]
