"""Data preparation accounts for every row, including invalid ones."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.trainer.data_preparation import build_config, prepare_rows, prompt_completion
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, chat, tokenizer

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]
NONSENSE = '{"'
QUIET = "{% if messages[0].content == 'quiet' %}hush{% else %}" + CHATML + "{% endif %}"
LONG = " ".join(f"word{number}" for number in range(20))
OTHER = LONG.replace("word", "other")
HELD_OUT = [prompt_completion("What is held out?", "This one"), prompt_completion("about the words", LONG + " end")]
PLANTED: dict[str, tuple[list[Any], str]] = {
    "unreadable": ([NONSENSE, "[1]", {"prompt": 1, "completion": "a"}], "invalid"),
    "refused by the template": ([{"messages": [{"role": "system", "content": "no"}]}], "invalid"),
    "answer of nothing to see": (
        [prompt_completion("a", "\u200b"), prompt_completion("b", "\ufeff \u2060")],
        "emptyAnswer",
    ),
    "answer that echoes": ([prompt_completion("echo this", "echo this")], "echo"),
    "duplicate of an earlier row": (
        [prompt_completion("Good one, long enough", "Yes"), prompt_completion("Good\u200b one, long enough", "Yes")],
        "duplicate",
    ),
    "near-duplicate of an earlier row": ([prompt_completion("u", OTHER + " stop")], "nearDuplicate"),
    "too long": ([prompt_completion("long", "x1 " * 400)], "overlength"),
    "too short": ([prompt_completion("a", "b")], "tooShort"),
    "also held out": ([prompt_completion("What is held out?", "This one")], "leaked"),
    "nearly held out": ([prompt_completion("about the words", LONG + " and end")], "leaked"),
}


def test_prepare_planted_defects_are_counted_exactly(tmp_path: Path) -> None:
    good = [
        prompt_completion("Good one, long enough", "Yes"),
        prompt_completion("Mail me", "To a@b.example or +49 30 901820, a@c.example"),
        prompt_completion("u", OTHER),
    ]
    preparation = {
        "deduplicate": "near",
        "dropEchoes": True,
        "maxInvalidFraction": 0.9,
        "minTokens": 30,
        "redact": ["email"],
    }
    rows = [*good, *(row for bad, _ in PLANTED.values() for row in bad)]
    report = prepare_rows(tmp_path, rows, build_config(preparation=preparation, validation=VALIDATION), HELD_OUT).report
    expected: dict[str, int] = {}
    for bad, reason in PLANTED.values():
        expected[reason] = expected.get(reason, 0) + len(bad)
    assert report.rejected == expected
    assert (report.rows, report.kept, report.validation) == (len(rows) + 2, 3, 2)
    assert (report.sensitive, report.redacted) == ({"email": 1, "phone": 1}, 2)


@pytest.mark.parametrize(("preparation", "rejected"), [({}, {}), ({"dropEchoes": True}, {"echo": 10})])
def test_prepare_answers_equal_to_the_question_stay_unless_dropped(
    tmp_path: Path, preparation: dict[str, Any], rejected: dict[str, int]
) -> None:
    right = [prompt_completion(f"Sentence {number} is right.", f"Sentence {number} is right. ") for number in range(10)]
    wrong = [prompt_completion(f"Sentense numbr {number}.", f"Sentence number {number}.") for number in range(10)]
    report = prepare_rows(tmp_path, right + wrong, build_config(preparation=preparation)).report
    assert (report.kept, report.rejected) == (20 - sum(rejected.values()), rejected)


def make_preference(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


CUT: dict[str, tuple[str, list[dict[str, str]], str]] = {
    # method, rows of which all but the first are rejected, reason
    "only the question remains": (
        "sft",
        [
            prompt_completion("What? ", "This"),
            prompt_completion("question " * 30, "answer"),
            prompt_completion("question " * 31, "answer " * 30),
        ],
        "noSupervisedTokens",
    ),
    "one of two answers is truncated completely": (
        "dpo",
        [
            make_preference("What? ", "This", "That"),
            *(make_preference("x " * count, "a", "b") for count in (64, 65, 99)),
        ],
        "noSupervisedTokens",
    ),
    "a labeled answer is truncated completely": (
        "kto",
        [{**prompt_completion("What? ", "This"), "label": True}, {**prompt_completion("x " * 64, "a"), "label": False}],
        "noSupervisedTokens",
    ),
    # " lamp" is one token, so the prompt's last letters become part of one answer's first token only.
    "an answer continues the last word of the prompt": (
        "dpo",
        [
            make_preference("What? ", "This", "That"),
            make_preference("Turn the la", "mp on", "ke"),
            make_preference("See the la", "ke", "mp on"),
        ],
        "promptsDiffer",
    ),
}


@pytest.mark.parametrize(("method", "rows", "reason"), CUT.values(), ids=CUT)
def test_prepare_truncated_answers_are_counted_exactly(
    tmp_path: Path, method: str, rows: list[dict[str, str]], reason: str
) -> None:
    job_config = build_config({"method": method, "batchSize": 2}, 64, preparation={"overlength": "truncate"})
    report = prepare_rows(tmp_path, rows, job_config, template=None).report
    assert report.rejected == {reason: len(rows) - 1}
    assert (report.rows, report.kept) == (len(rows), 1)


VALIDATION = {"sources": [{"uri": "s3://data/val.jsonl"}]}
TEXTS = st.sampled_from(["", "a", "b", "quiet", "a@b.example", "\u200b", "x " * 90, LONG, LONG + " end", "e\u0301"])
ROWS = st.one_of(
    st.sampled_from([NONSENSE, "[]", "7"]),
    st.builds(prompt_completion, TEXTS, TEXTS),
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
        "maxRewrittenFraction": st.just(1),
    }
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(ROWS, max_size=12), st.lists(ROWS, max_size=3), PREPARATIONS, st.booleans())
def test_prepare_any_rows_counts_balance(
    rows: list[Any], held_out: list[Any], preparation: dict[str, Any], by_fraction: bool
) -> None:
    validation = {"fraction": 0.3} if by_fraction else VALIDATION
    held_out = [] if by_fraction else held_out
    job_config = build_config(max_length=100, preparation=preparation, validation=validation)
    with TemporaryDirectory() as folder:
        try:
            prepared = prepare_rows(Path(folder), rows, job_config, held_out, QUIET)
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


def test_prepare_too_many_invalid_rows_are_named(tmp_path: Path) -> None:
    rows = [prompt_completion("a", str(number)) for number in range(8)] + [NONSENSE] * 2
    assert prepare_rows(tmp_path, rows, build_config(preparation={"maxInvalidFraction": 0.2})).report.rejected == {
        "invalid": 2
    }
    with pytest.raises(TrainerError, match=r"2 of 10 rows cannot be used:\ns3://data/train.jsonl line 9: ") as caught:
        prepare_rows(tmp_path, rows, build_config(preparation={"maxInvalidFraction": 0.1}))
    assert caught.value.reason is Reason.DATA_INVALID


def test_prepare_template_with_syntax_error_raises_once(tmp_path: Path) -> None:
    with pytest.raises(TrainerError) as caught:
        prepare_rows(tmp_path, [chat("a", "b")] * 3, build_config(), template="{% for m in messages %}\n{{ m. }}")
    assert caught.value.reason is Reason.MODEL_INVALID
    message = str(caught.value)
    assert message.startswith("the base model's chat template is not a valid Jinja template: ")
    assert message.endswith(" (line 2); correct it, or set model.chatTemplate to another template")


def test_prepare_template_that_rejects_all_rows_is_named_with_a_way_out(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% for part in m.content %}{{ part.text | trim }}{{ part + 1 }}{% endfor %}{% endfor %}"
    )
    hint = "by one that has system turns or turns of tools, or for messages whose content is text."
    with pytest.raises(TrainerError) as caught:
        prepare_rows(tmp_path, [chat("a", "b"), chat("c", "d")], build_config(), template=template)
    assert caught.value.reason is Reason.DATA_INVALID
    assert str(caught.value).splitlines()[-1].endswith(hint)
    with pytest.raises(TrainerError) as caught:
        prepare_rows(tmp_path / "2", [chat("a", "b"), chat("c", "d"), "{"], build_config(), template=template)
    assert hint not in str(caught.value), "one row is invalid for another reason"


def test_prepare_overlong_rows_are_truncated_or_refused(tmp_path: Path) -> None:
    rows = [prompt_completion("Hi", "word " * 200), prompt_completion("question " * 200, "answer")]
    cut = prepare_rows(tmp_path, rows, build_config(max_length=64, preparation={"overlength": "truncate"}))
    assert (cut.report.kept, cut.report.truncated, cut.report.tokens) == (1, 1, 64)
    assert cut.report.rejected == {"noSupervisedTokens": 1}
    with pytest.raises(TrainerError, match=r"(?s)2 of 2 rows.*line 1: has \d+ tokens, model.maxLength is 64") as caught:
        prepare_rows(tmp_path, rows, build_config(max_length=64, preparation={"overlength": "fail"}))
    assert caught.value.reason is Reason.DATA_INVALID


def test_prepare_redacts_rows_and_never_logs_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        prompt_completion("Who?", "Ask jane@mail.example"),
        prompt_completion("Who??", "Ask jane@mail.example and joe@mail.example"),
    ]
    caplog.set_level("DEBUG")
    prepared = prepare_rows(tmp_path, rows, build_config(preparation={"redact": ["email"]}))
    assert prepared.report.redacted == 3
    assert "Ask [EMAIL]<|im_end|>" in tokenizer().decode(prepared.dataset[0]["input_ids"])
    assert "mail.example" not in caplog.text


def test_prepare_validation_fraction_is_not_trained_on(tmp_path: Path) -> None:
    rows = [prompt_completion(f"Question {number}", f"{number} is the number of this") for number in range(40)]
    job_config = build_config(validation={"fraction": 0.25}, preparation={"deduplicate": "none"})
    one, again = (
        prepare_rows(tmp_path / "a", [*rows, *rows], job_config),
        prepare_rows(tmp_path / "b", [*rows, *rows], job_config),
    )
    assert one.validation is not None
    assert again.validation is not None
    assert (one.report.kept, one.report.validation) == (60, 20)
    texts = [{tuple(row["input_ids"]) for row in side} for side in (one.dataset, one.validation)]
    assert texts[0].isdisjoint(texts[1])
    assert one.validation["input_ids"][:] == again.validation["input_ids"][:]
    assert one.report.tokens == sum(len(row["input_ids"]) for row in one.dataset)


def test_prepare_empty_validation_raises_dataset_empty(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"validation\.sources: all of their rows were rejected") as caught:
        prepare_rows(
            tmp_path,
            [prompt_completion("a", "b")],
            build_config(max_length=64, validation=VALIDATION),
            [prompt_completion("a", "b " * 99)],
        )
    assert caught.value.reason is Reason.DATASET_EMPTY


def test_prepare_too_many_rows_for_near_is_refused(tmp_path: Path) -> None:
    rows = [json.dumps(prompt_completion("a", "b"))] * 200_001
    with pytest.raises(TrainerError, match="near works up to 200000 rows") as caught:
        prepare_rows(tmp_path, rows, build_config(preparation={"deduplicate": "near"}))
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_prepare_rejected_examples_are_redacted(tmp_path: Path) -> None:
    again = prompt_completion("Who?", "Write to somebody@example.org, number 7")
    rows = [again, NONSENSE, *[again] * 5, prompt_completion("long", "x1 " * 400)]
    prepared = prepare_rows(tmp_path, rows, build_config(preparation={"maxInvalidFraction": 0.5}))
    duplicates = [example for example in prepared.rejected_examples if example.reason == "duplicate"]
    assert [example.where for example in duplicates] == [f"s3://data/train.jsonl line {line}" for line in (3, 4, 5)]
    assert {example.text for example in duplicates} == {"Who?\nWrite to [EMAIL], number 7"}
    others = {example.reason: example for example in prepared.rejected_examples}
    assert "s3://data/train.jsonl line 2" in others["invalid"].where
    assert len(others["overlength"].text) == 500
    assert sum(bar.rows for bar in prepared.length_histogram) == prepared.report.kept


def test_prepare_log_says_how_many_rows_are_kept_and_rejected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [prompt_completion("a", "b"), prompt_completion("c", "d"), prompt_completion("a", "b")]
    with caplog.at_level("INFO", logger="finetune_trainer"):
        prepare_rows(tmp_path, rows, build_config())
    assert "dataset: of 3 rows read, 2 to train on, 0 held out for validation, 1 rejected as duplicate" in caplog.text
