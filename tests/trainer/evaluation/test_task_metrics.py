"""The measures of each task, against the libraries that define them and against numbers worked out by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.evaluation.classification import measure_classification
from finetune_trainer.evaluation.task_metrics import find_task_problem, list_missing, measure_task
from finetune_trainer.records.evaluation import ConfusionMatrix, Measure, Task

SENTENCES = [
    "The cat sat on the mat and looked at the dog.",
    "A storm closed the harbour for two days.",
    "Nobody expected the old bridge to hold.",
    "She paid for the bread with a silver coin.",
    "The museum opens at nine, except on Mondays.",
]
REFERENCES = SENTENCES * 5
HALF = [" ".join(reference.split()[: len(reference.split()) // 2]) for reference in REFERENCES]
NOTHING = ["zzz qqq"] * 25


def index_by_name(measures: list[Measure]) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures}


EXPECTED: dict[Task, list[str]] = {
    "classification": ["accuracy", "macroF1"],
    "summarization": ["rouge1", "rouge2", "rougeL"],
    "translation": ["bleu", "chrf"],
    "chat": ["exactMatch", "chrf"],
    "generation": ["exactMatch", "chrf"],
}


@pytest.mark.timeout(120)  # NLTK, which rouge-score imports, takes its time on a busy machine.
@pytest.mark.parametrize("task", EXPECTED)
def test_measures_each_task_has_its_metrics(task: Task) -> None:
    measures, confusion = measure_task(task, REFERENCES, HALF, REFERENCES)
    assert [measure.name for measure in measures] == EXPECTED[task]
    assert (confusion is not None) == (task == "classification")
    for measure in measures:
        assert measure.base is not None
        assert measure.change is not None
        assert measure.change.value == pytest.approx(measure.tuned.value - measure.base.value)
        best = 100 if measure.name in {"bleu", "chrf"} else 1
        assert measure.tuned.value == pytest.approx(best)
        assert measure.tuned.value <= best
        assert measure.base.value < measure.tuned.value
        assert (measure.change.low or 0) > 0
        assert measure.tuned.samples == 25


@pytest.mark.parametrize("task", EXPECTED)
def test_measures_no_rows_give_none(task: Task) -> None:
    assert measure_task(task, [], [], []) == ([], None)


def test_confusion_counts_answers_per_label() -> None:
    references = ["cat", "cat", "cat", "dog", "dog"]
    base = ["dog", "dog", "cat", "dog", "fish"]
    _, confusion = measure_classification(references, base, ["cat", "Dog", "bird", "dog.", "cat"])
    assert confusion == ConfusionMatrix(
        labels=["cat", "dog"], counts=[[1, 1, 1], [1, 1, 0]], base_counts=[[1, 2, 0], [0, 1, 1]]
    )


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=1, max_size=19))
def test_accuracy_and_f1_match_scikit_learn(rows: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    references, answers = [true for true, _ in rows], [given for _, given in rows]
    measures = index_by_name(measure_classification(references, answers, answers)[0])
    labels = sorted(set(references))
    expected = f1_score(references, answers, labels=labels, average="macro", zero_division=0)
    assert measures["macroF1"].tuned.value == pytest.approx(expected)
    assert measures["accuracy"].tuned.value == pytest.approx(accuracy_score(references, answers))


def test_bleu_and_chrf_match_sacrebleu() -> None:
    import sacrebleu

    measures = index_by_name(measure_task("translation", REFERENCES, HALF, REFERENCES)[0])
    for name, score in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
        base = measures[name].base
        assert base is not None
        assert base.value == pytest.approx(score(HALF, [REFERENCES]).score)
        assert base.low is not None
        assert base.high is not None
        assert base.low < base.value < base.high


@pytest.mark.timeout(120)
def test_rouge_matches_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scores = [RougeScorer(names).score(*pair) for pair in zip(SENTENCES, HALF, strict=False)]
    measures = index_by_name(measure_task("summarization", SENTENCES, NOTHING[:5], HALF[:5])[0])
    for name in names:
        assert measures[name].tuned.value == pytest.approx(sum(score[name].fmeasure for score in scores) / 5)


def test_rouge_interval_is_within_range_of_scores() -> None:
    references = ["The cat sat."] * 24
    nearly_none, nearly_all = [*["no"] * 23, "The cat sat."], [*["The cat sat."] * 23, "no"]
    for measure in measure_task("summarization", references, nearly_none, nearly_all)[0]:
        assert measure.base.low == 0 < measure.base.high
        assert measure.tuned.low < 1 == measure.tuned.high


OTHER_SCRIPTS = {
    "Russian": ("Кошка сидит на ковре.", "Собака сидит на ковре."),
    "Chinese": ("猫坐在垫子上", "狗坐在垫子上"),
    "Japanese": ("猫はマットの上に座った", "犬はマットの上に座った"),
    "Hindi": ("बिल्ली चटाई पर बैठी है", "कुत्ता चटाई पर बैठा है"),
    "Tamil": ("பூனை பாயில் உட்கார்ந்தது", "நாய் பாயில் உட்கார்ந்தது"),
    "Arabic with vowel signs": ("جَلَسَ القِطُّ عَلَى السَّجَّادَةِ", "جَلَسَ الكَلْبُ عَلَى السَّجَّادَةِ"),
    "Thai": ("แมวนั่งบนเสื่อ", "หมานั่งบนเสื่อ"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("reference", "answer"), OTHER_SCRIPTS.values(), ids=OTHER_SCRIPTS)
def test_measures_other_scripts_are_split_into_words(reference: str, answer: str) -> None:
    tasks: dict[Task, int] = {"summarization": 1, "translation": 100}
    for task, best in tasks.items():
        measures = measure_task(task, [reference], [answer], [reference])[0]
        for measure in measures:
            assert measure.base is not None
            assert 0 < measure.base.value < measure.tuned.value == pytest.approx(best), measure.name


VOWELS = {
    "Hindi": ("किताब", "कुतुब"),
    "Tamil": ("படி", "பாடு"),
    "Arabic": ("كَتَبَ", "كُتِبَ"),
    "words next to an emoji": ("good \u2764\ufe0f", "bad \u2764\ufe0f"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("reference", "answer"), VOWELS.values(), ids=VOWELS)
def test_rouge_different_vowel_signs_do_not_match(reference: str, answer: str) -> None:
    for measure in measure_task("summarization", [reference], [answer], [reference])[0][::2]:
        assert measure.base is not None
        assert (measure.base.value, measure.tuned.value) == (0, 1), measure.name


SHORT = {
    "labels": (["Hallo", "Bis bald!", "Ja"], ["chrf"]),
    "Chinese": (["你好", "再见"], ["chrf"]),
    "one long enough": (["Hallo", "Bis bald, mein Freund"], ["bleu", "chrf"]),
    "long enough in Chinese": (["猫坐在垫子上", "你好"], ["bleu", "chrf"]),
}


@pytest.mark.parametrize(("references", "names"), SHORT.values(), ids=SHORT)
def test_bleu_short_references_are_skipped(references: list[str], names: list[str]) -> None:
    measures, _ = measure_task("translation", references, ["zzz"] * len(references), references)
    assert {measure.name: measure.tuned.value for measure in measures} == pytest.approx(dict.fromkeys(names, 100.0))
    missing = list_missing("translation", references)
    assert [message.partition(":")[0] for message in missing] == [metric for metric in ["bleu"] if metric not in names]
    assert all("has 4 words" in message for message in missing)
    assert list_missing("chat", references) == []


def test_measures_better_model_differs_from_noise() -> None:
    rng = random.Random(2)
    references = [rng.choice(["yes", "no", "perhaps"]) for _ in range(60)]
    base = [reference if rng.random() < 0.5 else "no" for reference in references]
    tuned = [reference if rng.random() < 0.9 else "no" for reference in references]
    for measure in measure_classification(references, base, tuned)[0]:
        assert measure.change is not None
        assert (measure.change.low or 0) > 0
    for measure in measure_classification(references, base, base)[0]:
        assert measure.change is not None
        assert (measure.change.low or 0) <= 0 <= (measure.change.high or 0)


def test_exact_match_ignores_case() -> None:
    measures = index_by_name(measure_task("chat", ["Paris", "Rome"], ["paris ", "Berlin"], ["Paris.", "rome"])[0])
    assert measures["exactMatch"].base is not None
    assert (measures["exactMatch"].base.value, measures["exactMatch"].tuned.value) == (0.5, 0.5)


FITS: dict[str, tuple[Task, list[str]]] = {
    "labels": ("classification", ["yes", "no"] * 20),
    "few rows of as many labels": ("classification", ["red", "green", "blue"]),
    "a hundred labels": ("classification", [f"label {index}" for index in range(100)] * 2),
    "texts": ("summarization", SENTENCES),
    "some rows without an answer": ("chat", ["", "Paris"]),
}


@pytest.mark.parametrize(("task", "references"), FITS.values(), ids=FITS)
def test_check_task_suitable_references_are_accepted(task: Task, references: list[str]) -> None:
    assert find_task_problem(task, references) is None


REFUSED: dict[str, tuple[Task, list[str], str]] = {
    "no rows": ("summarization", [], "no row has a prompt and an answer; remove evaluation.task"),
    "rows without answers": ("chat", ["", " \n"], "no row has a prompt and an answer; remove evaluation.task"),
    "every answer is another": (
        "classification",
        [f"text {index}" for index in range(10)],
        "all 10 answers are different",
    ),
    "too many labels": ("classification", [f"{index}" for index in range(101)] * 2, "there are 101 different"),
    "control characters": ("classification", ["no", "\x1b[2J b c d e f g h i j k"] * 5, "'\\x1b[2j b c"),
    "long labels": ("classification", ["no", "a b c d e f g h i j k"] * 5, "has 11 words"),
}


@pytest.mark.parametrize(("task", "references", "words"), REFUSED.values(), ids=REFUSED)
def test_check_task_unsuitable_references_give_reason(task: Task, references: list[str], words: str) -> None:
    why = find_task_problem(task, references)
    assert why is not None
    assert words in why
    assert ("accuracy without labels" in why) == (task == "classification")
