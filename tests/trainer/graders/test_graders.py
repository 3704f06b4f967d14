"""Graders score answers as described, also hostile ones, within a bounded time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF

from finetune_trainer import contract
from finetune_trainer.contract import Reason
from finetune_trainer.data.answer_text import format_call, parse_answer
from finetune_trainer.errors import TrainerError
from finetune_trainer.graders.base import Grade, GradedAnswer
from finetune_trainer.graders.math_answer import MathWorker
from finetune_trainer.graders.suite import GraderSuite

DEEP = "[" * 100_000 + "]" * 100_000
LONG_DIGITS = "7" * 5000


def grade(
    settings: Mapping[str, Any], text: str, item: Mapping[str, Any] | None = None, reference: str | None = None
) -> Grade:
    grader = contract.Grader.model_validate({"name": "a", **settings})
    with GraderSuite([grader]) as suite:
        return suite.grade([GradedAnswer(text, item or {}, reference)])["a"][0]


EQUALS: dict[str, Any] = {"stringCheck": {"reference": "{{item.x}}"}}
IGNORES_CASE: dict[str, Any] = {"stringCheck": {"reference": "{{item.x}}", "ignoreCase": True}}
CONTAINS: dict[str, Any] = {"stringCheck": {"reference": "{{item.x}}", "operation": "contains"}}
DIFFERS: dict[str, Any] = {"stringCheck": {"reference": "{{item.x}}", "operation": "notEquals"}}
TOTAL: dict[str, Any] = {"numeric": {"reference": "{{item.x}}"}}
NEAR: dict[str, Any] = {"numeric": {"reference": "{{item.x}}", "tolerance": 0.01, "relativeTolerance": 0.1}}
EXTRACTED: dict[str, Any] = {"numeric": {"reference": "{{item.x}}", "extract": r"= (\S+)"}}
FIELD: dict[str, Any] = {"numeric": {"reference": "{{item.x}}", "input": "{{sample.output_json.rows.1.total}}"}}
SCHEMA: dict[str, Any] = {
    "jsonSchema": {"schema": '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}'}
}
WORDS: dict[str, Any] = {"length": {"minimum": 2, "maximum": 4}}
CHARACTERS: dict[str, Any] = {"length": {"maximum": 10, "unit": "characters"}}

# settings, answer, item.x → score
SCORES: dict[str, tuple[dict[str, Any], str, Any, float]] = {
    "equal text with spaces around it": (EQUALS, " yes\n", "yes", 1),
    "text in another case": (EQUALS, "Yes", "yes", 0),
    "text in another case that is ignored": (IGNORES_CASE, "STRASSE", "straße", 1),
    "composed and decomposed letters": (EQUALS, "cafe\u0301", "caf\u00e9", 1),
    "a JSON value as text": (EQUALS, '{"a": [1, true]}', {"a": [1, True]}, 1),
    "another text": (DIFFERS, "no", "yes", 1),
    "a part of the text": (CONTAINS, "It is yes.", "yes", 1),
    "no answer": (EQUALS, "", "yes", 0),
    "the last number": (TOTAL, "2 and 3 make 5.", 5, 1),
    "a number in words": (TOTAL, "five", 5, 0),
    "groups of three digits": (TOTAL, "It costs $1,234.50", "1234.5", 1),
    "a list of numbers": (TOTAL, "1,2,3", 3, 1),
    "a range": (TOTAL, "3-5", 5, 1),
    "a negative number": (TOTAL, "x = -5", -5, 1),
    "a Unicode minus": (TOTAL, "\u22125", -5, 1),
    "an exponent": (TOTAL, "1.5e3", 1500, 1),
    "a percentage": (TOTAL, "about 42 %", 42, 1),
    "a number without a leading zero": (TOTAL, ".5", 0.5, 1),
    "Arabic digits": (TOTAL, "\u0664\u0662", 42, 1),
    "digits of a word": (TOTAL, "7 of model X100b", 7, 1),
    "a number with its unit": (TOTAL, "It weighs 7kg", 7, 1),
    "a difference within the tolerance": (NEAR, "10.9", 10, 1),
    "a difference beyond the tolerance": (NEAR, "11.1", 10, 0),
    "a number that a pattern finds": (EXTRACTED, "3 = 4 = 7, not 9", 7, 1),
    "a number that a pattern does not find": (EXTRACTED, "7", 7, 0),
    "5000 digits": (TOTAL, LONG_DIGITS, LONG_DIGITS, 1),
    "5000 digits of which one differs": (TOTAL, LONG_DIGITS + "7", LONG_DIGITS + "8", 0),
    "numbers that no computer subtracts": (NEAR, "1e9999", "1", 0),
    "a field of JSON": (FIELD, '{"rows": [{}, {"total": 2.5}]}', 2.5, 1),
    "JSON without the field": (FIELD, '{"rows": []}', 2.5, 0),
    "text instead of JSON": (FIELD, "2.5", 2.5, 0),
    "NaN in JSON": (FIELD, '{"rows": [0, {"total": NaN}]}', 2.5, 0),
    "a field of deep JSON": (FIELD, DEEP, 2.5, 0),
    "a valid object": (SCHEMA, '{"a": 1}', "", 1),
    "an invalid object": (SCHEMA, '{"a": "1"}', "", 0),
    "an object in a code fence": (SCHEMA, '```json\n{"a": 1}\n```', "", 0),
    "two objects": (SCHEMA, '{"a": 1} {"a": 1}', "", 0),
    "deep JSON": (SCHEMA, DEEP, "", 0),
    "enough words": (WORDS, "one two three", "", 1),
    "too few words": (WORDS, "one", "", 0.5),
    "too many words": (WORDS, "one two three four five", "", 0.75),
    "far too many words": (WORDS, "one " * 100, "", 0),
    "words without spaces": (WORDS, "\u4f60\u597d", "", 1),
    "characters without those around them": (CHARACTERS, "  0123456789 ", "", 1),
}


@pytest.mark.parametrize(("settings", "text", "value", "expected"), SCORES.values(), ids=SCORES)
def test_grader_scores_answer(settings: dict[str, Any], text: str, value: object, expected: float) -> None:
    assert grade(settings, text, {"x": value}).score == expected


UNGRADED: dict[str, tuple[dict[str, Any], dict[str, Any], str | None, str]] = {
    "no such column": (EQUALS, {}, None, "the row has no field item.x"),
    "an empty column": (EQUALS, {"x": None}, None, "item.x of the row is empty"),
    "an empty cell": (EQUALS, {"x": ""}, None, "item.x of the row is empty"),
    "no such key in a column": (
        {"stringCheck": {"reference": "{{item.x.y}}"}}, {"x": {"z": 1}}, None, "the row has no field item.x.y",
    ),
    "no number": (TOTAL, {"x": "many"}, None, "{{item.x}} is not a number"),
    "a truth value": (TOTAL, {"x": True}, None, "{{item.x}} is not a number"),
    "no answer of the data": ({"stringCheck": {}}, {}, None, "the row has no answer of the data"),
    "an answer of the data that is no JSON": (
        {"numeric": {"reference": "{{reference.output_json.a}}"}}, {}, "a = 1", "the answer of the data is not JSON",
    ),
    "no calls to compare with": ({"toolCall": {}}, {}, None, "the row has no answer of the data"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "item", "reference", "problem"), UNGRADED.values(), ids=UNGRADED)
def test_grader_row_without_reference_gives_no_score(
    settings: dict[str, Any], item: dict[str, Any], reference: str | None, problem: str
) -> None:
    result = grade(settings, "1", item, reference)
    assert result.score is None
    assert problem in result.problem


CALL = format_call("find", {"city": "Rome", "days": 2})
OTHER_CALL = format_call("find", {"city": "Oslo"})

# arguments, answer, answer of the data → score
CALLS: dict[str, tuple[str, str, str, float]] = {
    "equal": ("equal", CALL, CALL, 1),
    "in a sentence and as another template writes it": (
        "equal",
        parse_answer('Sure.\n<tool_call>{"arguments": {"days": 2, "city": "Rome"}, "name": "find"}</tool_call>').text,
        CALL,
        1,
    ),
    "another argument": ("equal", OTHER_CALL, CALL, 0),
    "another argument that is ignored": ("ignored", OTHER_CALL, CALL, 1),
    "one more argument": ("subset", CALL, format_call("find", {"city": "Rome"}), 1),
    "one argument less": ("subset", OTHER_CALL, format_call("find", {"city": "Oslo", "days": 1}), 0),
    "in another order": ("equal", f"{OTHER_CALL}\n{CALL}", f"{CALL}\n{OTHER_CALL}", 1),
    "one of two": ("equal", CALL, f"{CALL}\n{OTHER_CALL}", 0.5),
    "twice": ("equal", f"{CALL}\n{CALL}", CALL, 0.5),
    "none of none": ("equal", "Hello.", "Hi.", 1),
    "one of none": ("equal", CALL, "Hi.", 0),
    "deep": ("equal", '{"name": "find", "arguments": ' + DEEP + "}", CALL, 0),
}


@pytest.mark.parametrize(("arguments", "text", "reference", "expected"), CALLS.values(), ids=CALLS)
def test_tool_call_grader_scores_calls(arguments: str, text: str, reference: str, expected: float) -> None:
    assert grade({"toolCall": {"arguments": arguments}}, text, reference=reference).score == expected


def test_text_similarity_equals_reference_implementations() -> None:
    text, reference = "The cat sat on the red mat.", "A cat sat on a mat."
    rouge = RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure
    chrf = CHRF().sentence_score(text, [reference]).score / 100
    assert grade({"textSimilarity": {"metric": "rougeL"}}, text, reference=reference).score == pytest.approx(rouge)
    assert grade({"textSimilarity": {"metric": "chrf"}}, text, reference=reference).score == pytest.approx(chrf)
    assert grade({"textSimilarity": {"metric": "chrf"}}, text, reference=text).score == 1


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a backreference": ({"stringCheck": {"operation": "matches", "reference": r"(a)\1"}}, "RE2"),
    "lookahead": ({"numeric": {"extract": "(?=1)"}}, "evaluation.graders[a].numeric.extract"),
    "a huge repetition": ({"numeric": {"extract": "(a{1000}){1000}"}}, "RE2"),
    "an unclosed group": ({"numeric": {"extract": "("}}, "missing )"),
    "no JSON": ({"jsonSchema": {"schema": "{a: 1}"}}, "is not a valid JSON Schema"),
    "a list": ({"jsonSchema": {"schema": "[]"}}, "must be a JSON object"),
    "an unknown type": ({"jsonSchema": {"schema": '{"type": "objec"}'}}, "is not a valid JSON Schema"),
    "a schema on the web": ({"jsonSchema": {"schema": '{"$ref": "http://127.0.0.1:9/a.json"}'}}, "is not a valid"),
    "a schema in a file": ({"jsonSchema": {"schema": '{"$ref": "file:///etc/passwd"}'}}, "is not a valid"),
    "a pattern that looks back": ({"jsonSchema": {"schema": r'{"pattern": "(a)\\1"}'}}, "is not a valid"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_suite_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError) as raised:
        grade(settings, "")
    assert raised.value.reason is Reason.CONFIG_INVALID
    assert message in raised.value.message


CATASTROPHIC: dict[str, dict[str, Any]] = {
    "stringCheck": {"stringCheck": {"operation": "matches", "reference": "(a+)+$"}},
    "numeric": {"numeric": {"extract": "(a+)+$", "reference": "1"}},
    "jsonSchema": {"jsonSchema": {"schema": '{"pattern": "^(a+)+$"}'}},
}


@pytest.mark.parametrize("settings", CATASTROPHIC.values(), ids=CATASTROPHIC)
def test_grader_catastrophic_pattern_takes_linear_time(settings: dict[str, Any]) -> None:
    started = time.process_time()
    grade(settings, "a" * 50_000 + "b")
    grade(settings, '"' + "a" * 50_000 + 'b"')
    assert time.process_time() - started < 2


def test_graders_of_an_answer_of_a_megabyte_end_soon() -> None:
    kinds = [EQUALS, TOTAL, SCHEMA, WORDS, {"textSimilarity": {"metric": "rougeL"}}, {"toolCall": {}}]
    started = time.process_time()
    for settings in kinds:
        assert grade(settings, "1 a " * 250_000, {"x": 1}, reference="a b").score is not None
    assert time.process_time() - started < 20


def test_weighted_grader_is_the_mean_of_its_terms() -> None:
    graders = [
        {"name": "first", **EQUALS},
        {"name": "second", **CHARACTERS},
        {"name": "both", "weighted": {"terms": [{"grader": "first", "weight": 3}, {"grader": "second"}]}},
    ]
    answers = [GradedAnswer("yes", {"x": "no"}), GradedAnswer("yes", {"x": "yes"}), GradedAnswer("yes")]
    with GraderSuite([contract.Grader.model_validate(each) for each in graders]) as suite:
        grades = suite.grade(answers)["both"]
    assert [each.score for each in grades] == [0.25, 1, None]
    assert grades[2].problem == "first: the row has no field item.x"


EQUAL_EXPRESSIONS = [
    (r"\frac{1}{2}", "0.5"),
    (r"The answer is \boxed{\frac{3}{4}}.", "0.75"),
    ("x = 3", "3"),
    (r"$2\sqrt{3}$", r"\sqrt{12}"),
    ("1/3", r"\frac{1}{3}"),
    (r"$\{1, 2\}$", r"\{2, 1\}"),
    (r"\{1, 2\}", r"$\{2, 1\}$"),
    ("$(0, 1]$", "(0, 1]"),
    (r"50\%", r"50\%"),
    ("$x^2 + 2x$", "x(x+2)"),
]
DIFFERENT_EXPRESSIONS = [
    ("0.3", r"\frac{1}{3}"),
    ("$(0, 1)$", "(0, 1]"),
    ("I do not know", "3"),
    ("", "3"),
    ("$x+1$", "x"),
    (r"\{1, 3\}", r"\{2, 1\}"),
]


@pytest.fixture(scope="module")
def suite() -> Iterator[GraderSuite]:
    settings = {"name": "a", "math": {"reference": "{{item.x}}"}}
    with GraderSuite([contract.Grader.model_validate(settings)]) as graders:
        yield graders


@pytest.mark.timeout(120)
def test_math_grader_compares_values(suite: GraderSuite) -> None:
    def score(pairs: list[tuple[str, str]]) -> list[tuple[str, float | None]]:
        grades = suite.grade([GradedAnswer(text, {"x": reference}) for text, reference in pairs])["a"]
        return [(text, each.score) for (text, _), each in zip(pairs, grades, strict=True)]

    assert score(EQUAL_EXPRESSIONS) == [(text, 1.0) for text, _ in EQUAL_EXPRESSIONS]
    assert score(DIFFERENT_EXPRESSIONS) == [(text, 0.0) for text, _ in DIFFERENT_EXPRESSIONS]


@pytest.mark.timeout(120)
def test_math_grader_endless_expression_scores_zero_and_the_next_one_is_graded(suite: GraderSuite) -> None:
    hostile = ["$9^{9^{9^{9^9}}}$", "$" + "(" * 5000 + "$", "$x^{" * 200, "$\\int_0^1 " * 50 + "$"]
    answers = [GradedAnswer(text, {"x": "7"}) for text in [*hostile, "7"]]
    started = time.monotonic()
    assert [each.score for each in suite.grade(answers)["a"]] == [0, 0, 0, 0, 1]
    assert time.monotonic() - started < 90


@pytest.mark.timeout(120)
def test_math_grader_text_as_reference_gives_no_score(suite: GraderSuite) -> None:
    result = suite.grade([GradedAnswer("7", {"x": "?"})])["a"][0]
    assert result.score is None
    assert "is not a mathematical expression" in result.problem


@pytest.mark.timeout(120)
def test_math_worker_does_not_get_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    worker = MathWorker()
    assert worker.ask("1", "1") == "equal"
    assert worker._process
    with open(f"/proc/{worker._process.pid}/environ", "rb") as file:
        assert b"secret" not in file.read()
    worker.stop()
