"""Parsing of rows in each format, and errors for invalid rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_trainer.contract.dataset import Preparation
from finetune_trainer.data.row_columns import RowColumns, rename_columns
from finetune_trainer.data.row_types import Chat, LabeledExample, PlainText, Preference, PromptCompletion, Row, RowError
from finetune_trainer.data.turn_order import arrange_turns
from finetune_trainer.training.methods import METHODS

USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
SYSTEM = {"role": "system", "content": "s"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
PREFERENCE = Preference(Chat([USER, GOOD]), Chat([USER, BAD]))

VALID_ROWS: dict[str, tuple[str, dict[str, Any], list[Row]]] = {
    "messages": ("sft", {"messages": [USER, GOOD]}, [Chat([USER, GOOD])]),
    "a tool's turn": (
        "sft",
        {"messages": [USER, {"role": "tool", "content": ""}, GOOD]},
        [Chat([USER, {"role": "tool", "content": ""}, GOOD])],
    ),
    "sharegpt": (
        "sft",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]},
        [Chat([USER, GOOD])],
    ),
    "sharegpt with system": (
        "sft",
        {"system": "s", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "good"}]},
        [Chat([SYSTEM, USER, GOOD])],
    ),
    "sharegpt with the same system text twice": (
        "sft",
        {"system": "s", "conversations": [SYSTEM, USER, GOOD]},
        [Chat([SYSTEM, USER, GOOD])],
    ),
    "messages with system": ("sft", {"system": "s", "messages": [USER, GOOD]}, [Chat([SYSTEM, USER, GOOD])]),
    "messages as JSON text": ("sft", {"messages": json.dumps([USER, GOOD])}, [Chat([USER, GOOD])]),
    "empty columns of another format": (
        "sft",
        {"messages": [USER, GOOD], "conversations": [], "prompt": "", "completion": None},
        [Chat([USER, GOOD])],
    ),
    "weight 0 and 1": (
        "sft",
        {"messages": [USER, {**BAD, "weight": 0}, {**USER, "weight": 1}, {**GOOD, "weight": 1}]},
        [Chat([USER, BAD, USER, GOOD], unsupervised_turns=frozenset({1}))],
    ),
    "weight 0 after a system column": (
        "sft",
        {"system": "s", "messages": [USER, {**BAD, "weight": 0}, USER, GOOD]},
        [Chat([SYSTEM, USER, BAD, USER, GOOD], unsupervised_turns=frozenset({2}))],
    ),
    "reasoning": (
        "sft",
        {"messages": [USER, {**GOOD, "thinking": "hm", "reasoning_content": ""}]},
        [Chat([USER, {**GOOD, "reasoning_content": "hm"}])],
    ),
    "a turn with a name": ("sft", {"messages": [{**USER, "name": "al"}, GOOD]}, [Chat([{**USER, "name": "al"}, GOOD])]),
    "alpaca": ("sft", {"instruction": "i", "input": "", "output": "o"}, [PromptCompletion("i", "o")]),
    "alpaca with history": (
        "sft",
        {"instruction": "q", "output": "good", "system": "s", "history": [["q", "bad"]]},
        [Chat([SYSTEM, USER, BAD, USER, GOOD])],
    ),
    "alpaca with history as JSON text": (
        "sft",
        {"instruction": "q", "output": "good", "history": '[["q", "bad"]]'},
        [Chat([USER, BAD, USER, GOOD])],
    ),
    "alpaca with input": ("sft", {"instruction": "i", "input": "x", "output": "o"}, [PromptCompletion("i\n\nx", "o")]),
    "alpaca with an additional text column": (
        "sft",
        {"instruction": "i", "output": "o", "text": "all"},
        [PromptCompletion("i", "o")],
    ),
    "alpaca with system": (
        "sft",
        {"instruction": "q", "input": None, "output": "good", "system": "s"},
        [Chat([SYSTEM, USER, GOOD])],
    ),
    "pair": ("sft", {"prompt": "q", "completion": "a"}, [PromptCompletion("q", "a")]),
    "pair with input": ("sft", {"prompt": "q", "input": "x", "completion": "a"}, [PromptCompletion("q\n\nx", "a")]),
    "pair with system": (
        "sft",
        {"system": "s", "prompt": "q", "completion": "good"},
        [Chat([SYSTEM, USER, GOOD])],
    ),
    "pair of lists": ("sft", {"prompt": [USER], "completion": [GOOD]}, [Chat([USER, GOOD])]),
    "pair of text and list": ("sft", {"prompt": "q", "completion": [GOOD]}, [Chat([USER, GOOD])]),
    "pair of list and text": ("sft", {"prompt": [USER], "completion": "good"}, [Chat([USER, GOOD])]),
    "pair whose answer is other JSON": (
        "sft",
        {"prompt": "q", "completion": '[{"from": "Rome", "value": "x"}]'},
        [PromptCompletion("q", '[{"from": "Rome", "value": "x"}]')],
    ),
    "pair whose prompt has an answer": (
        "sft",
        {"prompt": [USER, BAD, USER], "completion": [GOOD, USER, GOOD]},
        [Chat([USER, BAD, USER, GOOD, USER, GOOD], unsupervised_turns=frozenset({1}))],
    ),
    "text": ("sft", {"text": "t"}, [PlainText("t")]),
    "preference of texts": (
        "dpo",
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        [Preference(PromptCompletion("q", "good"), PromptCompletion("q", "bad"))],
    ),
    "preference of turns after text": ("dpo", {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, [PREFERENCE]),
    "preference of one turn each": ("dpo", {"prompt": [USER], "chosen": GOOD, "rejected": BAD}, [PREFERENCE]),
    "preference of texts after turns": ("dpo", {"prompt": [USER], "chosen": "good", "rejected": "bad"}, [PREFERENCE]),
    "preference of conversations": ("dpo", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [PREFERENCE]),
    "preference of conversations as JSON text": (
        "dpo",
        {"chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])},
        [PREFERENCE],
    ),
    "preference with repeated prompt": (
        "dpo",
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        [PREFERENCE],
    ),
    "preference in sharegpt": (
        "dpo",
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        [PREFERENCE],
    ),
    "preference with system": (
        "dpo",
        {"system": "s", "prompt": "q", "chosen": "good", "rejected": "bad"},
        [Preference(Chat([SYSTEM, USER, GOOD]), Chat([SYSTEM, USER, BAD]))],
    ),
    "preference with an instruction and a history": (
        "dpo",
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad", "history": [["q", "bad"]]},
        [Preference(Chat([USER, BAD, USER, GOOD]), Chat([USER, BAD, USER, BAD]))],
    ),
    "preference of conversations with system and tools": (
        "dpo",
        {"system": "s", "tools": [TOOL], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        [Preference(Chat([SYSTEM, USER, GOOD], [TOOL]), Chat([SYSTEM, USER, BAD], [TOOL]))],
    ),
    "OpenAI's preference": (
        "dpo",
        {
            "input": {"messages": [USER], "tools": [TOOL], "parallel_tool_calls": True},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
        [Preference(Chat([USER, GOOD], [TOOL]), Chat([USER, BAD], [TOOL]))],
    ),
    "OpenAI's preference for kto": (
        "kto",
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        [LabeledExample(Chat([USER, GOOD]), desirable=True), LabeledExample(Chat([USER, BAD]), desirable=False)],
    ),
    "dialogues without a prompt": (
        "dpo",
        {
            "chosen": "\n\nHuman: q\n\nAssistant: bad\n\nHuman: q\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: bad\n\nHuman: q\n\nAssistant: bad",
        },
        [Preference(Chat([USER, BAD, USER, GOOD]), Chat([USER, BAD, USER, BAD]))],
    ),
    "texts with common lines": (
        "dpo",
        {"chosen": "Capital of Italy?\nThe city of Rome.", "rejected": "Capital of Italy?\nThe city of Ravenna."},
        [
            Preference(
                PromptCompletion("Capital of Italy?\n", "The city of Rome."),
                PromptCompletion("Capital of Italy?\n", "The city of Ravenna."),
            )
        ],
    ),
    "texts with common words": (
        "dpo",
        {"chosen": "2 and 2 are 4", "rejected": "2 and 2 are 45"},
        [Preference(PromptCompletion("2 and 2 are ", "4"), PromptCompletion("2 and 2 are ", "45"))],
    ),
    "judged alpaca": (
        "kto",
        {"instruction": "q", "output": "a", "label": True},
        [LabeledExample(PromptCompletion("q", "a"), desirable=True)],
    ),
    "judged true": (
        "kto",
        {"prompt": "q", "completion": "a", "label": True},
        [LabeledExample(PromptCompletion("q", "a"), desirable=True)],
    ),
    "judged 0": (
        "kto",
        {"prompt": "q", "completion": "a", "label": 0},
        [LabeledExample(PromptCompletion("q", "a"), desirable=False)],
    ),
    "judged 'False'": (
        "kto",
        {"prompt": "q", "completion": "a", "label": "False"},
        [LabeledExample(PromptCompletion("q", "a"), desirable=False)],
    ),
    "judged turns": (
        "kto",
        {"prompt": [USER], "completion": [GOOD], "label": "1"},
        [LabeledExample(Chat([USER, GOOD]), desirable=True)],
    ),
    "judged conversation": (
        "kto",
        {"messages": [USER, BAD], "label": False},
        [LabeledExample(Chat([USER, BAD]), desirable=False)],
    ),
    "pair of answers for kto": (
        "kto",
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        [LabeledExample(Chat([USER, GOOD]), desirable=True), LabeledExample(Chat([USER, BAD]), desirable=False)],
    ),
}

INVALID_ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "answers twice": (
        "sft",
        {"messages": [USER, GOOD, BAD]},
        "two consecutive assistant turns; set dataset.preparation.mergeTurns: true to join them (turn 3: 'bad')",
    ),
    "null content": ("sft", {"messages": [{"role": "user", "content": None}, GOOD]}, "to be text, found nothing"),
    "user is silent": (
        "sft",
        {"messages": [{"role": "user", "content": " "}, GOOD]},
        "messages[0].content to be a message",
    ),
    "unknown sharegpt role": ("sft", {"conversations": [{"from": "narrator", "value": "x"}]}, "[0].from to be one of"),
    "messages is null": ("sft", {"messages": None}, "to be a list of turns, found nothing"),
    "alpaca without instruction": ("sft", {"instruction": " ", "output": "o"}, "to be an instruction, found it empty"),
    "alpaca input is a list": ("sft", {"instruction": "i", "input": [1], "output": "o"}, "'input' to be text"),
    "blank text": ("sft", {"text": " "}, "expected 'text' to be text, found it empty"),
    "two formats": (
        "sft",
        {"messages": [USER, GOOD], "conversations": [GOOD]},
        "has both 'messages' and 'conversations'",
    ),
    "preference for sft": ("sft", {"prompt": "q", "chosen": "a", "rejected": "b"}, "need training.method dpo or kto"),
    "messages for dpo": ("dpo", {"messages": [USER, GOOD]}, "expected 'chosen', found 'messages'"),
    "no rejected": ("dpo", {"prompt": "q", "chosen": "a"}, "expected 'rejected'"),
    "no prompt": ("dpo", {"chosen": "a", "rejected": "b"}, "expected 'prompt', or texts with a common beginning"),
    "no prompt before turns": ("dpo", {"chosen": [GOOD], "rejected": [BAD]}, "'chosen' to be a complete conversation"),
    "other prompts": (
        "dpo",
        {"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "r"}, BAD]},
        "differ only in the last answer",
    ),
    "chosen ends with the user": (
        "dpo",
        {"chosen": [USER], "rejected": [USER, BAD]},
        "'chosen' to end with an assistant turn, found a turn of user",
    ),
    "prompt ends with an answer": (
        "dpo",
        {"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"},
        "expected 'prompt' to end before the answer in 'chosen', found a turn of assistant at its end",
    ),
    "empty rejected": ("dpo", {"prompt": "q", "chosen": "a", "rejected": ""}, "'rejected' to be an answer"),
    "rejected is null": (
        "dpo",
        {"prompt": "q", "chosen": "a", "rejected": None},
        "'rejected' to be text or a list of turns",
    ),
    "label is 2": ("kto", {"prompt": "q", "completion": "a", "label": 2}, "true, false, 1 or 0, found 2"),
    "label is null": ("kto", {"prompt": "q", "completion": "a", "label": None}, "found nothing"),
    "label is a word": (
        "kto",
        {"prompt": "q", "completion": "a", "label": "yes"},
        "found 'yes'; replace the label of good answers",
    ),
    "two system texts": (
        "sft",
        {"system": "t", "messages": [SYSTEM, USER, GOOD]},
        "has a text in 'system' and another",
    ),
    "weight 0.5": ("sft", {"messages": [USER, {**GOOD, "weight": 0.5}]}, "messages[1].weight to be 0 or 1, found 0.5"),
    "two reasonings": (
        "sft",
        {"messages": [USER, {**GOOD, "reasoning": "a", "thinking": "b"}]},
        "one reasoning in messages[1], found different texts in reasoning and thinking",
    ),
    "reasoning of the user": (
        "sft",
        {"messages": [{**USER, "reasoning": "a"}, GOOD]},
        "messages[0] to have role and content, found also 'reasoning'",
    ),
    "messages as Python's text": ("sft", {"messages": "[{'role': 'user'}]"}, "write lists as JSON (json.dumps)"),
    "answer as Python's text": (
        "dpo",
        {"prompt": "q", "chosen": str([GOOD]), "rejected": str([BAD])},
        "expected 'chosen' to be JSON",
    ),
    "answer is an object": (
        "sft",
        {"prompt": "q", "completion": {"text": ["a"]}},
        "'completion' to be text or a list of turns, found an object",
    ),
    "history without pairs": (
        "sft",
        {"instruction": "i", "output": "o", "history": ["a", "b"]},
        "history[0] to be a pair of texts, found text",
    ),
    "completion without an answer": (
        "sft",
        {"prompt": "q", "completion": [USER]},
        "expected an assistant turn in 'completion'",
    ),
    "OpenAI's preference for sft": (
        "sft",
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        "has 'preferred_output' and 'non_preferred_output', which need training.method dpo or kto",
    ),
    "dialogues that go on": (
        "dpo",
        {
            "chosen": "Human: q\n\nAssistant: good\n\nHuman: q\n\nAssistant: good",
            "rejected": "Human: q\n\nAssistant: bad",
        },
        "to differ only in the last answer, found further turns",
    ),
    "question and answer": (
        "sft",
        {"Question": "q", "answer": "a"},
        "found 'Question', 'answer'; set fields: {prompt: Question, completion: answer}",
    ),
    "question, context and response": (
        "sft",
        {"system_prompt": "s", "instruction": "q", "context": "c", "response": "r"},
        "set fields: {system: system_prompt, prompt: instruction, input: context, completion: response}",
    ),
    "input and output": ("sft", {"input": "q", "output": "a"}, "set fields: {prompt: input, completion: output}"),
    "question of a pair": (
        "dpo",
        {"question": "q", "chosen": "It is a", "rejected": "It is b"},
        "found 'question', 'chosen', 'rejected'; set fields: {prompt: question}",
    ),
    "kto_tag": (
        "kto",
        {"prompt": "q", "completion": "a", "kto_tag": True},
        "set fields: {label: kto_tag}",
    ),
    "no label": ("kto", {"prompt": "q", "completion": "a"}, "expected 'prompt', 'completion' and 'label'"),
}


def parse_row(row: dict[str, Any], method: str) -> list[Row]:
    schema = METHODS[method]
    parsed_rows = schema.parse_row(RowColumns(row), schema.detect_format(row))
    return [arrange_turns(parsed_row, Preparation()) for parsed_row in parsed_rows]


@pytest.mark.parametrize(("method", "row", "expected_rows"), VALID_ROWS.values(), ids=VALID_ROWS)
def test_parse_row_each_format_gives_expected_rows(method: str, row: dict[str, Any], expected_rows: list[Row]) -> None:
    assert parse_row(row, method) == expected_rows


@pytest.mark.parametrize(("method", "row", "expected_message"), INVALID_ROWS.values(), ids=INVALID_ROWS)
def test_parse_row_invalid_names_expectation(method: str, row: dict[str, Any], expected_message: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(row, method)
    assert expected_message in str(caught.value)


def test_renamed_columns_may_swap_names() -> None:
    row = {"completion": "q", "prompt": "a", "id": 1}
    assert rename_columns(row, {"prompt": "completion", "completion": "prompt"}).values == {
        "prompt": "q",
        "completion": "a",
        "id": 1,
    }


def test_renamed_missing_column_is_refused() -> None:
    with pytest.raises(RowError, match=r"expected the column 'question' \(fields: prompt\), found 'q', 'completion'"):
        rename_columns({"q": "a", "completion": "b"}, {"prompt": "question"})


def test_renamed_optional_column_may_be_absent() -> None:
    assert rename_columns({"instruction": "a"}, {"input": "context"}).values == {"instruction": "a"}


def test_parse_row_list_of_turns_in_object_is_suggested_as_a_field() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(RowError, match=r"found 'custom_id', 'body.messages'; set fields: {messages: body.messages}"):
        parse_row({"custom_id": "1", "body": {"messages": turns}}, "sft")
