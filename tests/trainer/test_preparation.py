"""Every row is accounted for, whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.trainer.preparations import configured, pair, run
from tests.trainer.tiny_model import CHATML, TRAINING_SECONDS, chat, tokenizer

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_SECONDS)]
NONSENSE = "{"
QUIET = "{% if messages[0].content == 'quiet' %}hush{% else %}" + CHATML + "{% endif %}"
LONG = " ".join(f"word{number}" for number in range(20))
OTHER = LONG.replace("word", "other")
HELD_OUT = [pair("What is held out?", "This one"), pair("about the words", LONG + " end")]
PLANTED: dict[str, tuple[list[Any], str]] = {
    "unreadable": ([NONSENSE, "[1]", {"prompt": 1, "completion": "a"}], "invalid"),
    "refused by the template": ([{"messages": [{"role": "system", "content": "no"}]}], "invalid"),
    "answer of nothing to see": ([pair("a", "\u200b"), pair("b", "\ufeff \u2060")], "emptyAnswer"),
    "answer that echoes": ([pair("echo this", "echo this")], "identicalAnswers"),
    "said before": ([pair("Good one, long enough", "Yes"), pair("Good\u200b one, long enough", "Yes")], "duplicate"),
    "said nearly before": ([pair("u", OTHER + " stop")], "nearDuplicate"),
    "too long": ([pair("long", "x1 " * 400)], "overlength"),
    "too short": ([pair("a", "b")], "tooShort"),
    "also held out": ([pair("What is held out?", "This one")], "leaked"),
    "nearly held out": ([pair("about the words", LONG + " and end")], "leaked"),
}


def test_planted_defects_of_every_kind_are_counted_to_the_row(tmp_path: Path) -> None:
    good = [
        pair("Good one, long enough", "Yes"),
        pair("Mail me", "To a@b.example or +49 30 901820, a@c.example"),
        pair("u", OTHER),
    ]
    preparation = {"deduplicate": "near", "maxInvalidFraction": 0.9, "minTokens": 30, "redact": ["email"]}
    rows = [*good, *(row for bad, _ in PLANTED.values() for row in bad)]
    report = run(tmp_path, rows, configured(preparation=preparation, validation=VALIDATION), HELD_OUT).report
    expected: dict[str, int] = {}
    for bad, reason in PLANTED.values():
        expected[reason] = expected.get(reason, 0) + len(bad)
    assert report.rejected == expected
    assert (report.rows, report.kept, report.validation) == (len(rows) + 2, 3, 2)
    assert (report.sensitive, report.redacted) == ({"email": 1, "phone": 1}, 2)


def better(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


CUT: dict[str, tuple[str, list[dict[str, str]], str]] = {
    # method, rows of which all but the first are left out, why
    "nothing but the question is left": (
        "sft",
        [pair("What? ", "This"), pair("question " * 30, "answer"), pair("question " * 31, "answer " * 30)],
        "noSupervisedTokens",
    ),
    "one of two answers is cut off whole": (
        "dpo",
        [better("What? ", "This", "That"), *(better("x " * count, "a", "b") for count in (64, 65, 99))],
        "noSupervisedTokens",
    ),
    "a judged answer is cut off whole": (
        "kto",
        [{**pair("What? ", "This"), "label": True}, {**pair("x " * 64, "a"), "label": False}],
        "noSupervisedTokens",
    ),
    # " lamp" is one token, so the prompt's last letters become part of one answer's first token only.
    "an answer goes on in the prompt's last word": (
        "dpo",
        [better("What? ", "This", "That"), better("Turn the la", "mp on", "ke"), better("See the la", "ke", "mp on")],
        "promptsDiffer",
    ),
}


@pytest.mark.parametrize(("method", "rows", "reason"), CUT.values(), ids=CUT)
def test_rows_without_an_answer_or_a_common_prompt_are_counted_to_the_row(
    tmp_path: Path, method: str, rows: list[dict[str, str]], reason: str
) -> None:
    made = configured({"method": method, "batchSize": 2}, 64, preparation={"overlength": "truncate"})
    report = run(tmp_path, rows, made, template=None).report
    assert report.rejected == {reason: len(rows) - 1}
    assert (report.rows, report.kept) == (len(rows), 1)


VALIDATION = {"sources": [{"uri": "s3://data/val.jsonl"}]}
TEXTS = st.sampled_from(["", "a", "b", "quiet", "a@b.example", "\u200b", "x " * 90, LONG, LONG + " end", "e\u0301"])
ROWS = st.one_of(
    st.sampled_from([NONSENSE, "[]", "7"]),
    st.builds(pair, TEXTS, TEXTS),
    st.lists(TEXTS, min_size=1, max_size=4).map(lambda turns: chat(*turns)),
)
PREPARATIONS = st.fixed_dictionaries(
    {
        "deduplicate": st.sampled_from(["none", "exact", "near"]),
        "overlength": st.sampled_from(["drop", "truncate"]),
        "minTokens": st.sampled_from([0, 20]),
        "normalizeText": st.booleans(),
        "redact": st.sampled_from([[], ["email"]]),
        "maxInvalidFraction": st.just(1),
    }
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(ROWS, max_size=12), st.lists(ROWS, max_size=3), PREPARATIONS, st.booleans())
def test_the_account_balances_for_any_rows(
    rows: list[Any], held_out: list[Any], preparation: dict[str, Any], by_fraction: bool
) -> None:
    validation = {"fraction": 0.3} if by_fraction else VALIDATION
    held_out = [] if by_fraction else held_out
    made = configured(max_length=100, preparation=preparation, validation=validation)
    with TemporaryDirectory() as folder:
        try:
            prepared = run(Path(folder), rows, made, held_out, QUIET)
        except TrainerError as error:
            if error.reason not in (Reason.DATASET_EMPTY, Reason.DATA_INVALID):
                raise
            return
        report = prepared.report
        assert report.rows == len(rows) + len(held_out)
        assert report.rows == report.kept + report.validation + sum(report.rejected.values())
        assert report.kept == len(prepared.dataset)
        assert report.validation == len(prepared.validation or [])
        assert report.tokens == sum(len(row["input_ids"]) for row in prepared.dataset)
        assert max(len(row["input_ids"]) for row in prepared.dataset) <= 100


def test_more_wrong_rows_than_allowed_are_named(tmp_path: Path) -> None:
    rows = [pair("a", str(number)) for number in range(8)] + [NONSENSE] * 2
    assert run(tmp_path, rows, configured(preparation={"maxInvalidFraction": 0.2})).report.rejected == {"invalid": 2}
    with pytest.raises(TrainerError, match=r"2 of 10 rows cannot be used:\ns3://data/train.jsonl line 9: ") as caught:
        run(tmp_path, rows, configured(preparation={"maxInvalidFraction": 0.1}))
    assert caught.value.reason is Reason.DATA_INVALID


def test_long_rows_are_cut_at_the_end_or_refused(tmp_path: Path) -> None:
    rows = [pair("Hi", "word " * 200), pair("question " * 200, "answer")]
    cut = run(tmp_path, rows, configured(max_length=64, preparation={"overlength": "truncate"}))
    assert (cut.report.kept, cut.report.truncated, cut.report.tokens) == (1, 1, 64)
    assert cut.report.rejected == {"noSupervisedTokens": 1}
    with pytest.raises(TrainerError, match=r"(?s)2 of 2 rows.*line 1: has \d+ tokens, model.maxLength is 64") as caught:
        run(tmp_path, rows, configured(max_length=64, preparation={"overlength": "fail"}))
    assert caught.value.reason is Reason.DATA_INVALID


def test_rows_are_redacted_before_they_are_learnt_and_never_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [pair("Who?", "Ask jane@mail.example"), pair("Who??", "Ask jane@mail.example and joe@mail.example")]
    caplog.set_level("DEBUG")
    prepared = run(tmp_path, rows, configured(preparation={"redact": ["email"]}))
    assert prepared.report.redacted == 3
    assert "Ask [EMAIL]<|im_end|>" in tokenizer().decode(prepared.dataset[0]["input_ids"])
    assert "mail.example" not in caplog.text


def test_fraction_sets_rows_aside_that_nothing_of_is_trained_on(tmp_path: Path) -> None:
    rows = [pair(f"Question {number}", f"{number} is the number of this") for number in range(40)]
    made = configured(validation={"fraction": 0.25}, preparation={"deduplicate": "none"})
    one, again = run(tmp_path / "a", [*rows, *rows], made), run(tmp_path / "b", [*rows, *rows], made)
    assert one.validation is not None
    assert again.validation is not None
    assert (one.report.kept, one.report.validation) == (60, 20)
    texts = [{tuple(row["input_ids"]) for row in side} for side in (one.dataset, one.validation)]
    assert texts[0].isdisjoint(texts[1])
    assert one.validation["input_ids"][:] == again.validation["input_ids"][:]
    assert one.report.tokens == sum(len(row["input_ids"]) for row in one.dataset)


def test_validation_data_of_which_nothing_is_left_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"validation\.sources: none of their rows can be used") as caught:
        run(tmp_path, [pair("a", "b")], configured(max_length=64, validation=VALIDATION), [pair("a", "b " * 99)])
    assert caught.value.reason is Reason.DATASET_EMPTY


def test_too_many_rows_for_near_duplicates_are_refused_at_once(tmp_path: Path) -> None:
    rows = [json.dumps(pair("a", "b"))] * 200_001
    with pytest.raises(TrainerError, match="near works up to 200000 rows") as caught:
        run(tmp_path, rows, configured(preparation={"deduplicate": "near"}))
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_rows_left_out_are_shown_with_their_place_and_without_secrets(tmp_path: Path) -> None:
    again = pair("Who?", "Write to somebody@example.org, number 7")
    rows = [again, NONSENSE, *[again] * 5, pair("long", "x1 " * 400)]
    made = run(tmp_path, rows, configured(preparation={"maxInvalidFraction": 0.5}))
    duplicates = [each for each in made.rejected_examples if each.reason == "duplicate"]
    assert [each.where for each in duplicates] == [f"s3://data/train.jsonl line {line}" for line in (3, 4, 5)]
    assert {each.text for each in duplicates} == {"Who?\nWrite to [EMAIL], number 7"}
    others = {each.reason: each for each in made.rejected_examples}
    assert "s3://data/train.jsonl line 2" in others["invalid"].where
    assert len(others["overlength"].text) == 500
    assert sum(bar.rows for bar in made.length_histogram) == made.report.kept
