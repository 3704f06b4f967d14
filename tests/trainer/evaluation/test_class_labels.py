"""Tests of the mapping from an answer to a class label."""

from __future__ import annotations

import pytest

from finetune_trainer.evaluation.class_labels import ClassLabels

ANSWERS = {
    "the label": ("positive", "positive"),
    "another case and space": ("  Positive\n", "positive"),
    "with a full stop": ("positive.", "positive"),
    "with an explanation": ("Positive: the guest liked it", "positive"),
    "another word": ("positively", None),
    "the label at the end": ("It is positive", None),
    "two words": ("not positive!", "not positive"),
    "decomposed letters": ("ne\u0301gatif", "Négatif"),
    "nothing": ("", None),
}


@pytest.mark.parametrize(("answer", "label"), ANSWERS.values(), ids=ANSWERS)
def test_labels_answer_maps_to_expected_label(answer: str, label: str | None) -> None:
    labels = ClassLabels(["positive", "Négatif", "not positive", "not", "Positive"])
    assert labels.names == ["not", "not positive", "Négatif", "positive"]
    assert [*labels.names, None][labels.find_index(answer)] == label


NUMBERS = {"the number": ("1", 0), "a longer number": ("10", 1), "another": ("12", 2), "with decimals": ("1.5", 2)}


@pytest.mark.parametrize(("answer", "number"), NUMBERS.values(), ids=NUMBERS)
def test_labels_numeric_answer_maps_to_exact_number(answer: str, number: int) -> None:
    assert ClassLabels(["1", "10"]).find_index(answer) == number


GO_ON = {
    # label, answer, whether it is that label
    "another language": ("C", "C++ is best", False),
    "with a sharp": ("C", "C#", False),
    "with a full stop": ("C", "C. It is", True),
    "a word with a hyphen": ("no", "no-one", False),
    "a word with a longer hyphen": ("no", "no\u2011one", False),
    "a dash apart": ("no", "no - it is not", True),
    "a dash that ends": ("no", "no-", True),
    "with a comma": ("no", "no, it is not", True),
    "single word with a full stop": ("no", "no.", True),
    "short for another": ("can", "can't", False),
    "short for another, as it is printed": ("can", "can\u2019t", False),
    "in quotation marks": ("can", "can' it is", True),
    "with a vowel sign": ("हा", "हाँ", False),
    "in Hindi": ("हा", "हा, ठीक है", True),
    "with a combining accent": ("q", "q\u0301", False),
    "with a small digit": ("x", "x²", False),
    "an emoji in colour": ("\u2764", "\u2764\ufe0f", True),
    "an emoji as text": ("\u2764\ufe0f", "\u2764 it", True),
}


@pytest.mark.parametrize(("label", "answer", "same"), GO_ON.values(), ids=GO_ON)
def test_labels_longer_word_is_different_label(label: str, answer: str, same: bool) -> None:
    assert (ClassLabels([label]).find_index(answer) == 0) == same


def test_labels_with_punctuation_are_matched() -> None:
    labels = ClassLabels(["C", "C++", ".*"])
    assert [labels.names[labels.find_index(answer)] for answer in ("c++", "C++ of course", "C", ".* it is")] == [
        "C++",
        "C++",
        "C",
        ".*",
    ]
