"""Every row is accounted for, whatever is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.trainer.tiny_model import CHATML, MARKED_CHATML, TRAINING_SECONDS, chat, config, tokenizer, write_rows

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data import preparing
from finetune_trainer.data.preparing import Files, PreparedData
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_SECONDS)]
NONSENSE = "{"
QUIET = "{% if messages[0].content == 'quiet' %}hush{% else %}" + CHATML + "{% endif %}"
LONG = " ".join(f"word{number}" for number in range(20))
OTHER = LONG.replace("word", "other")


def configured(training: dict[str, Any] | None = None, max_length: int = 300, **dataset: Any) -> TrainerConfig:
    made = config(training, max_length).to_json()
    made["dataset"].update(dataset)
    return TrainerConfig.model_validate(made)


def run(
    folder: Path,
    rows: Sequence[Any],
    settings: TrainerConfig,
    held_out: Sequence[Any] = (),
    template: str | None = CHATML,
) -> PreparedData:
    source = settings.dataset.sources[0]
    folder.mkdir(exist_ok=True)
    training = [(source, [write_rows(folder / "rows", rows)])]
    validation = [(source, [write_rows(folder / "held out", held_out, "s3://data/val.jsonl")])] if held_out else []
    return preparing.prepare(settings, Files(training, "sha256:0", validation), tokenizer(template), folder / "work")


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


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


PREFERENCES = {
    "kept": ({"prompt": "Why?", "chosen": "Because of that", "rejected": "No idea"}, None),
    "the same answer twice": ({"prompt": "Why?", "chosen": "So", "rejected": "So\u200b"}, "identicalAnswers"),
    "empty": ({"prompt": "Why?", "chosen": "So", "rejected": "\u200b"}, "emptyAnswer"),
    "too long": ({"prompt": "Why?", "chosen": "So", "rejected": "x " * 400}, "overlength"),
}


@pytest.mark.parametrize(("row", "reason"), PREFERENCES.values(), ids=PREFERENCES)
def test_preferences_are_one_prompt_and_two_answers(tmp_path: Path, row: dict[str, str], reason: str | None) -> None:
    fine = {"prompt": "What?", "chosen": "This", "rejected": "That"}
    made = configured({"method": "dpo"}, preparation={})
    prepared = run(tmp_path, [fine, row], made)
    assert prepared.report.rejected == ({reason: 1} if reason else {})
    words, first = tokenizer(), prepared.dataset[0]
    assert words.decode(first["prompt_ids"]) == "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    answers = [words.decode(first[name]) for name in ("chosen_ids", "rejected_ids")]
    assert answers == ["This<|im_end|>", "That<|im_end|>"]


def test_judged_answers_keep_their_verdict(tmp_path: Path) -> None:
    rows = [{**pair("Why?", "So"), "label": True}, {**pair("Why?", "So"), "label": False}]
    prepared = run(tmp_path, rows, configured({"method": "kto", "batchSize": 2}))
    assert prepared.dataset["label"][:] == [True, False]
    assert tokenizer().decode(prepared.dataset[0]["completion_ids"]) == "So<|im_end|>"


ENDINGS: dict[str, tuple[str | None, str | None, dict[str, Any]]] = {
    "a template without markers": (CHATML, None, chat("Hi", "Hello")),
    "a template with markers": (MARKED_CHATML, None, chat("Hi", "Hello")),
    "no template": (None, None, pair("Hi", " Hello")),
    "no template and a first token": (None, "<|begin_of_text|>", pair("Hi", " Hello")),
    "a first token that the text has already": (None, "<|begin_of_text|>", pair("<|begin_of_text|>Hi", " Hello")),
    "plain text": (None, "<|begin_of_text|>", {"text": "All of this"}),
    "plain text for a chat model": (CHATML, "<|begin_of_text|>", {"text": "All of this"}),
}


@pytest.mark.parametrize("eos_is_pad", [False, True], ids=["own pad", "pad is eos"])
@pytest.mark.parametrize(("template", "first", "row"), ENDINGS.values(), ids=ENDINGS)
def test_every_answer_ends_and_nothing_begins_twice(
    tmp_path: Path, template: str | None, first: str | None, row: dict[str, Any], eos_is_pad: bool
) -> None:
    words, made = tokenizer(template, first), configured()
    if eos_is_pad:
        words.pad_token = words.eos_token
    files = Files([(made.dataset.sources[0], [write_rows(tmp_path / "rows", [row])])], "")
    example = preparing.prepare(made, files, words, tmp_path).dataset[0]
    ids, learnt = example["input_ids"], [label for label in example["labels"] if label != -100]
    assert learnt[-1] == words.eos_token_id
    begins = words.convert_tokens_to_ids("<|begin_of_text|>")
    assert ids.count(begins) == (1 if first else 0)
    if "text" in row:
        assert words.decode(learnt) == "All of this<|im_end|>"


def test_rows_left_out_are_shown_with_their_place_and_without_secrets(tmp_path: Path) -> None:
    again = pair("Who?", "Write to somebody@example.org, number 7")
    rows = [again, NONSENSE, *[again] * 5, pair("long", "x1 " * 400)]
    made = run(tmp_path, rows, configured(preparation={"maxInvalidFraction": 0.5}))
    duplicates = [each for each in made.examples if each.reason == "duplicate"]
    assert [each.where for each in duplicates] == [f"s3://data/train.jsonl line {line}" for line in (3, 4, 5)]
    assert {each.text for each in duplicates} == {"Who?\nWrite to [EMAIL], number 7"}
    others = {each.reason: each for each in made.examples}
    assert "s3://data/train.jsonl line 2" in others["invalid"].where
    assert len(others["overlength"].text) == 500
    assert sum(bar.rows for bar in made.lengths) == made.report.kept


class TestCounterfactuals:
    ROWS = (pair("Who is the doctor?", "He is."), pair("What is it?", "A lamp."), pair("Is he old?", "Yes, old."))

    def prepared(
        self, folder: Path, rows: Sequence[Any], validation: dict[str, float] | None = None, **preparation: Any
    ) -> PreparedData:
        asked = {"counterfactuals": ["gender", "age"], **preparation}
        return run(folder, rows, configured(preparation=asked, **({"validation": validation} if validation else {})))

    def texts(self, prepared: PreparedData) -> list[str]:
        words = tokenizer(CHATML)
        return [words.decode(row["input_ids"], skip_special_tokens=True) for row in prepared.dataset]

    def test_each_row_is_there_with_each_category_exchanged(self, tmp_path: Path) -> None:
        made = self.prepared(tmp_path, self.ROWS)
        assert (made.report.rows, made.report.kept, made.report.augmented) == (3, 3, 3)
        said = "\n".join(self.texts(made))
        assert all(text in said for text in ("She is.", "Is she old?", "Is he young?", "Yes, young."))
        assert made.report.supervised_tokens == sum(label != -100 for row in made.dataset for label in row["labels"])

    def test_a_row_that_is_there_already_is_not_made(self, tmp_path: Path) -> None:
        rows = [pair("Who?", "She is."), pair("Who?", "He is.")]
        made = self.prepared(tmp_path, rows)
        assert (made.report.kept, made.report.augmented, made.report.rejected) == (1, 1, {"duplicate": 1})
        assert sorted(self.texts(made)) == sorted(set(self.texts(made)))

    def test_validation_rows_are_the_datas_own_and_their_counterparts_are_not_learnt(self, tmp_path: Path) -> None:
        rows = [pair(f"Who is number {n}, he or another?", f"He is {n}.") for n in range(20)]
        made = self.prepared(tmp_path, rows, validation={"fraction": 0.25}, deduplicate="near")
        assert made.validation
        assert made.report.kept + made.report.validation + sum(made.report.rejected.values()) == made.report.rows
        assert len(made.dataset) == made.report.kept + made.report.augmented
        words = tokenizer(CHATML)
        held_out = [words.decode(row["input_ids"], skip_special_tokens=True) for row in made.validation]
        assert len(held_out) == made.report.validation
        assert all("He is" in text for text in held_out)
        learnt = self.texts(made)
        assert not [text for text in held_out if text.replace("he or", "she or").replace("He is", "She is") in learnt]

    def test_one_that_became_too_long_is_no_row_that_is_left_out(self, tmp_path: Path) -> None:
        made = run(
            tmp_path, [pair("Who?", "He. " * 6)], configured(max_length=50, preparation={"counterfactuals": ["gender"]})
        )
        assert (made.report.kept, made.report.rejected) == (1, {})
