"""Near-duplicate search in rows that share boilerplate, such as an instruction before each message."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.support.trainer.data_preparation import build_config, prepare_rows
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT

from finetune_trainer.data.deduplication import DuplicateFilter, DuplicateIndex, MinHashIndex, RowGroups
from finetune_trainer.data.row_types import Chat, LabeledExample, PlainText, Preference, PromptCompletion, Row
from finetune_trainer.data.shingles import BoilerplateFinder

VOCABULARY = [f"{first}{second}" for first in ("ka", "lo", "mi", "ren", "sta") for second in range(60)]
Make = Callable[[random.Random], Row]


def random_words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(VOCABULARY, k=count))


ONE, TWO, THREE = (random_words(random.Random(seed), 140) for seed in range(3))


def random_message(chance: random.Random) -> str:
    return random_words(chance, chance.randint(8, 18))


def random_label(chance: random.Random) -> str:
    return chance.choice(["positive", "negative", "neutral"])


def make_conversation(chance: random.Random) -> Row:
    user, assistant = f"{ONE}\n{random_message(chance)}", random_label(chance)
    turns = [("user", user), ("assistant", assistant), ("user", "Are you sure?"), ("assistant", "Yes")]
    return Chat([{"role": role, "content": content} for role, content in turns])


def make_preference(chance: random.Random) -> Row:
    prompt = f"{ONE} {random_message(chance)}"
    return Preference(
        PromptCompletion(prompt, random_words(chance, 9)), PromptCompletion(prompt, random_words(chance, 9))
    )


def make_row_with_examples(chance: random.Random) -> Row:
    """Return an instruction with 3 of 10 examples, followed by a message."""
    examples = [random_words(random.Random(seed), 20) for seed in range(10)]
    return PromptCompletion(" ".join([ONE, *chance.sample(examples, 3), random_message(chance)]), random_label(chance))


TEMPLATED: dict[str, Make] = {
    "instruction before": lambda chance: PromptCompletion(f"{ONE} {random_message(chance)}", random_label(chance)),
    "instruction after": lambda chance: PromptCompletion(f"{random_message(chance)} {ONE}", random_label(chance)),
    "instruction around": lambda chance: PromptCompletion(
        f"{ONE} {random_message(chance)} {TWO}", random_label(chance)
    ),
    "three instructions": lambda chance: PromptCompletion(
        f"{chance.choice([ONE, TWO, THREE])} {random_message(chance)}", random_label(chance)
    ),
    "varying examples": make_row_with_examples,
    "a number": lambda chance: PromptCompletion(f"{ONE} {chance.random()}", "ok"),
    "several turns": make_conversation,
    "preferences": make_preference,
    "verdicts": lambda chance: LabeledExample(
        PromptCompletion(f"{ONE} {random_message(chance)}", random_label(chance)), chance.random() < 0.5
    ),
    "text": lambda chance: PlainText(
        f"### Instruction: {ONE}\n### Input: {random_message(chance)}\n### Answer: {random_label(chance)}"
    ),
}


def make_rows(make: Make, count: int) -> list[Row]:
    chance = random.Random(7)
    return [make(chance) for _ in range(count)]


def make_near_index(rows: Sequence[Row]) -> MinHashIndex:
    finder = BoilerplateFinder()
    for row in rows:
        finder.add(row)
    return MinHashIndex(0.8, finder.find_boilerplate())


def count_near_duplicates(rows: Sequence[Row]) -> int:
    index = make_near_index(rows)
    count = 0
    for row in rows:
        signature = index.compute_signature(row)
        count += any(True for _ in index.query(signature))
        index.insert(signature)
    return count


def count_groups(rows: Sequence[Row]) -> int:
    row_groups = RowGroups(make_near_index(rows))
    for row in rows:
        row_groups.add(row)
    return len(set(row_groups.compute_keys()))


@pytest.mark.parametrize("make", TEMPLATED.values(), ids=TEMPLATED)
def test_near_duplicates_shared_instruction_finds_none(make: Make) -> None:
    distinct = make_rows(make, 200)
    assert count_near_duplicates(distinct) == 0
    assert count_groups(distinct) == 200


CHINESE = "请判断以下客户留言应该由哪个部门处理只回答一个词请考虑产品语气和客户的愿望如果留言与金钱有关请回答账单"
SCHEMA = (
    '{"task": "extract the entities of the order", "rules": ["no explanations", "null for missing values"], "text": '
)
STEPS = "Let me think step by step. First I look at what the question asks for. Then I consider "
SMALL_SETS: dict[str, Make] = {
    "one instruction": TEMPLATED["instruction before"],
    "two instructions": lambda chance: PromptCompletion(
        f"{chance.choice([ONE, TWO])} {random_message(chance)}", random_label(chance)
    ),
    "Chinese": lambda chance: PromptCompletion(
        CHINESE + "".join(chr(0x4E00 + chance.randrange(4000)) for _ in range(12)), random_label(chance)
    ),
    "JSON": lambda chance: PromptCompletion(f'{SCHEMA}"{random_message(chance)}"}}', random_label(chance)),
    "steps in the answer": lambda chance: PromptCompletion(random_message(chance), STEPS + random_words(chance, 3)),
}


@pytest.mark.parametrize("count", [12, 20, 60])
@pytest.mark.parametrize("make", SMALL_SETS.values(), ids=SMALL_SETS)
def test_near_duplicates_small_set_with_shared_instruction_finds_none(make: Make, count: int) -> None:
    rows = make_rows(make, count)
    assert count_near_duplicates(rows) == 0
    assert count_groups(rows) == count
    copies = [
        PromptCompletion(row.prompt.upper(), row.completion) for row in rows[:5] if isinstance(row, PromptCompletion)
    ]
    assert count_near_duplicates([*rows, *copies]) == 5


def make_rows_of_contexts(answer: Callable[[random.Random], str]) -> list[Row]:
    """Return five questions about each of eight long texts."""
    chance = random.Random(1)
    contexts = [random_words(chance, 300) for _ in range(8)]
    return [
        PromptCompletion(f"{contexts[number % 8]}\nQuestion: {random_words(chance, 8)}", answer(chance))
        for number in range(40)
    ]


def count_rejected(rows: Sequence[Row], held_out: Sequence[Row] = ()) -> Counter[str | None]:
    held_out_index = DuplicateIndex(None, make_near_index(rows))
    held_out_filter = DuplicateFilter(held_out_index, rejects_duplicates=True)
    for row in held_out:
        held_out_filter.find_near(row)
    row_filter = DuplicateFilter(DuplicateIndex(None, make_near_index(rows)), True, [held_out_index])
    return Counter(row_filter.find_near(row) for row in rows)


def test_near_filter_same_context_with_other_answers_is_kept() -> None:
    rows = make_rows_of_contexts(lambda chance: random_words(chance, 9))
    assert count_rejected(rows) == {None: 40}
    assert count_rejected(rows[8:], rows[:8]) == {None: 32}
    changed = [
        PromptCompletion(f"{row.prompt}?", f"{row.completion} indeed")
        for row in rows[:6]
        if isinstance(row, PromptCompletion)
    ]
    assert count_rejected(rows + changed) == {None: 40, "nearDuplicate": 6}
    assert count_rejected(changed, rows) == {"leaked": 6}


def test_near_filter_same_context_with_same_answer_is_dropped() -> None:
    answer = random_words(random.Random(2), 9)
    assert count_rejected(make_rows_of_contexts(lambda _: answer)) == {None: 8, "nearDuplicate": 32}


@pytest.mark.parametrize("instructions", [[ONE], [ONE, TWO, THREE]], ids=["one", "three"])
def test_near_duplicates_one_word_changed_is_found(instructions: list[str]) -> None:
    chance = random.Random(3)
    messages = [random_words(chance, 120) for _ in range(100)]
    changed = [message.replace(message.split()[30], "other", 1) for message in messages[:40]]
    prompts = [
        f"{instructions[number % len(instructions)]} {message}" for number, message in enumerate(messages + changed)
    ]
    assert count_near_duplicates([PromptCompletion(prompt, "yes") for prompt in prompts]) == 40


def make_changed_copies(copies: int, texts_count: int) -> list[Row]:
    """Return copies of a few texts, each with another word changed."""
    chance = random.Random(5)
    texts = [random_words(chance, 120).split() for _ in range(texts_count)]
    changes = [(text, chance.randrange(120)) for text in texts for _ in range(copies)]
    return [
        PlainText(" ".join([*text[:at], f"new{number}", *text[at + 1 :]])) for number, (text, at) in enumerate(changes)
    ]


@pytest.mark.parametrize(("copies", "of"), [(2, 5), (10, 1), (12, 1), (20, 10), (300, 1)])
def test_groups_copies_with_one_word_changed_stay_together(copies: int, of: int) -> None:
    assert count_groups(make_changed_copies(copies, of)) == of


def test_near_duplicates_few_rows_of_same_text_are_found() -> None:
    assert count_near_duplicates([PlainText(f"{ONE} {number}") for number in range(10)]) == 9


def test_near_duplicates_rows_of_shared_text_only_are_found() -> None:
    copies = [PlainText(ONE.replace(" ", "!" * number + " ", 1)) for number in range(1, 31)]
    assert count_near_duplicates(copies) == 29


def test_boilerplate_reordered_rows_give_same_result() -> None:
    many: list[Row] = [
        *make_rows(TEMPLATED["three instructions"], 1500),
        *(PlainText(f"{number} is free") for number in range(900)),
    ]
    orders = [many, many[::-1], random.Random(1).sample(many, len(many)), many + many[:700]]
    findings = []
    for order in orders:
        finder = BoilerplateFinder()
        for row in order:
            finder.add(row)
        findings.append(finder.find_boilerplate())
    assert findings[0]
    assert findings == [findings[0]] * 4


def test_boilerplate_rows_without_shared_text_give_none() -> None:
    finder = BoilerplateFinder()
    for row in make_rows(
        lambda chance: PromptCompletion(f"Translate to French: {random_message(chance)}", random_message(chance)), 300
    ):
        finder.add(row)
    assert not finder.find_boilerplate()


ALPACA = {
    "prompt and completion": lambda text, answer: {"prompt": f"{ONE}\n{text}", "completion": answer},
    "alpaca": lambda text, answer: {"instruction": ONE, "input": text, "output": answer},
    "messages": lambda text, answer: {
        "messages": [{"role": "user", "content": f"{text}\n{ONE}"}, {"role": "assistant", "content": answer}]
    },
}


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
@pytest.mark.parametrize("make", ALPACA.values(), ids=ALPACA)
def test_prepare_shared_instruction_keeps_and_splits_rows(
    tmp_path: Path, make: Callable[[str, str], dict[str, object]]
) -> None:
    chance = random.Random(2)
    rows = [make(random_message(chance), random_label(chance)) for _ in range(100)]
    settings = build_config(
        {"crossValidation": {"folds": 3}},
        max_length=4096,
        preparation={"deduplicate": "near"},
        validation={"fraction": 0.1},
    )
    prepared = prepare_rows(tmp_path, rows, settings)
    assert (prepared.report.kept, prepared.report.validation, prepared.report.rejected) == (90, 10, {})
    assert prepared.folds is not None
    assert [len(prepared.folds.select_held_out_rows(part)) for part in range(3)] == [30, 30, 30]
