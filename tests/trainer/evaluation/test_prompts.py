"""Validation rows as prompts: references are the answers of the data, without reasoning and template markers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.trainer.chat_template_families import COMMAND_R, GPT_OSS, TAGGED_ANSWER_TEMPLATE, TemplateFamily
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, chat, import_libraries

from finetune_trainer.data.answer_text import format_call
from finetune_trainer.data.loss_masking import IGNORE_INDEX, LossMasker
from finetune_trainer.data.row_archive import build_archived_row
from finetune_trainer.data.row_types import Chat, PlainText, PromptCompletion
from finetune_trainer.evaluation.prompts import (
    EvaluationRow,
    TemplateFrame,
    list_cut_answers,
    list_unfinished_reasoning,
    select_rows,
)
from finetune_trainer.records.evaluation import GeneratedAnswer

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

Conversation = Chat | PromptCompletion | PlainText
THINKING = "<think>\nI like it.\n</think>\n\npositive"
THINK_TOKENS = ("<think>", "</think>")
EMPTY_THINK = CHATML.replace(
    "{{ m.content }}",
    "{{ '<think></think>\n' if m.role == 'assistant' and '<think>' not in m.content }}{{ m.content }}",
)
THINK_PROMPT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
HARMONY_TOKENS = ("<|start|>", "<|end|>", "<|return|>", "<|channel|>", "<|message|>")
HARMONY = TemplateFamily(GPT_OSS, special_tokens=HARMONY_TOKENS, eos_token="<|return|>")
# Family, answer of the row, its reference and its reasoning, and whether the prompt opens the reasoning.
REFERENCES: dict[str, tuple[TemplateFamily, str, str, str]] = {
    "no reasoning": (TemplateFamily(CHATML), "positive", "positive", ""),
    "reasoning": (TemplateFamily(CHATML), THINKING, "positive", "I like it."),
    "reasoning in tokens": (TemplateFamily(CHATML, plain_tokens=THINK_TOKENS), THINKING, "positive", "I like it."),
    "reasoning in special tokens": (
        TemplateFamily(CHATML, special_tokens=THINK_TOKENS),
        THINKING,
        "positive",
        "I like it.",
    ),
    "empty reasoning of the template": (
        TemplateFamily(EMPTY_THINK, plain_tokens=THINK_TOKENS),
        "positive",
        "positive",
        "",
    ),
    "reasoning begins in the prompt": (TemplateFamily(THINK_PROMPT), THINKING, "positive", "I like it."),
    "final channel": (HARMONY, "positive", "positive", ""),
    "tags around the answer": (TemplateFamily(TAGGED_ANSWER_TEMPLATE), "positive", "positive", ""),
    "markers around the answer": (TemplateFamily(COMMAND_R), "positive", "positive", ""),
    "tool call as text": (
        TemplateFamily(CHATML),
        '<tool_call>{"arguments": {"b": 1, "a": 2}, "name": "add"}</tool_call>',
        format_call("add", {"a": 2, "b": 1}),
        "",
    ),
}


def select(
    family: TemplateFamily, *conversations: Conversation, loss: str = "completion", **archived: Any
) -> tuple[list[EvaluationRow], TemplateFrame]:
    import_libraries()
    from datasets import Dataset

    tokenizer = family.build_tokenizer()
    masker = LossMasker(tokenizer, "all" if loss == "all" else "completion")
    tokenized = masker.tokenize([masker.render(conversation) for conversation in conversations])
    rows = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in tokenized])
    texts = [
        replace(build_archived_row("", conversation, row.answer_start), **archived)
        for conversation, row in zip(conversations, tokenized, strict=True)
    ]
    return select_rows(rows, Dataset.from_list([text.to_columns() for text in texts]), tokenizer, 10)


def decode_own_answer(family: TemplateFamily, row: EvaluationRow, answer: str) -> str:
    """Return the final text if a model writes exactly the row."""
    from finetune_trainer.modeling.generation import CompletionDecoder

    tokenizer = family.build_tokenizer()
    masker = LossMasker(tokenizer)
    (tokens,) = masker.tokenize([masker.render(Chat(chat("How is it?", answer)["messages"]))])
    return CompletionDecoder(tokenizer).decode(tokens.input_ids[len(row.prompt) :], row.prompt).final


@pytest.mark.parametrize("loss", ["completion", "all"])
@pytest.mark.parametrize(("family", "answer", "reference", "reasoning"), REFERENCES.values(), ids=REFERENCES)
def test_select_rows_reference_is_answer_of_the_data(
    family: TemplateFamily, answer: str, reference: str, reasoning: str, loss: str
) -> None:
    (row,), frame = select(family, Chat(chat("How is it?", answer)["messages"]), loss=loss)
    assert (row.reference, row.reasoning) == (reference, reasoning)
    assert row.turns == (("user", "How is it?"),)
    assert frame.remove_from(decode_own_answer(family, row, answer)) == reference


def test_select_rows_without_prompt_are_skipped() -> None:
    rows, _ = select(TemplateFamily(CHATML), PlainText("All of it is learned."), PromptCompletion("2+2=", "4"))
    assert [(row.number, row.reference) for row in rows] == [(1, "4")]


def test_select_rows_end_token_in_completion_is_removed() -> None:
    (row,), _ = select(TemplateFamily(None), PromptCompletion("2+2=", "4<|endoftext|>"))
    assert row.reference == "4"


def test_select_rows_last_supervised_answer_is_the_reference() -> None:
    messages = chat("1+1", "2", "2+2", "4", "3+3")["messages"]
    (row,), _ = select(TemplateFamily(CHATML), Chat(messages))
    assert row.reference == "4"
    assert row.turns == (("user", "1+1"), ("assistant", "2"), ("user", "2+2"))


def test_select_rows_last_answer_without_loss_is_not_the_reference() -> None:
    import_libraries()
    from datasets import Dataset

    tokenizer = TemplateFamily(CHATML).build_tokenizer()
    conversation = Chat(chat("1+1", "2", "2+2", "4")["messages"], unsupervised_turns=frozenset({3}))
    masker = LossMasker(tokenizer)
    (tokens,) = masker.tokenize([masker.render(conversation)])
    labels = [*tokens.labels[: tokens.answer_start], *[IGNORE_INDEX] * len(tokens.labels[tokens.answer_start :])]
    archived = build_archived_row("", conversation, tokens.answer_start)
    ((row,), _) = select_rows(
        Dataset.from_list([{"input_ids": tokens.input_ids, "labels": labels}]),
        Dataset.from_list([archived.to_columns()]),
        tokenizer,
        10,
    )
    assert (row.reference, row.turns) == ("2", (("user", "1+1"),))
    assert tokenizer.decode(row.prompt).endswith("1+1<|im_end|>\n<|im_start|>assistant\n")


def test_select_rows_cut_off_answer_is_skipped() -> None:
    messages = Chat(chat("1+1", "2")["messages"])
    assert select(TemplateFamily(CHATML), messages, answer_start=500)[0] == []


def test_select_rows_unknown_call_format_is_compared_as_text() -> None:
    rendered = "<calls>add(a=1)</calls>"
    messages, call = Chat(chat("Add 1.", rendered)["messages"]), format_call("add", {"a": 1})
    (row,), _ = select(TemplateFamily(CHATML), messages, answer=call, has_calls=True)
    assert row.reference == rendered


def test_list_cut_answers_says_which_side_is_too_long() -> None:
    rows = [EvaluationRow(number, "", (), (), tokens, "") for number, tokens in enumerate((4, 9, 30))]
    assert list_cut_answers(rows, 0, 30) == []
    (endless,), (too_long,) = list_cut_answers(rows, 2, 30), list_cut_answers(rows, 1, 8)
    assert "2 of 3 answers of the tuned model were cut at 30 tokens" in endless
    assert "the longest reference answer has 30, so the model has not learned to end them" in endless
    assert "1 of 3 answers of the tuned model were cut at 8 tokens" in too_long
    assert "2 of 3 reference answers have more tokens, the longest 30" in too_long
    assert "set evaluation.maxNewTokens to a higher value" in too_long


def test_list_unfinished_reasoning_counts_answers_without_text() -> None:
    done = GeneratedAnswer(text="4", reasoning="2 and 2", is_cut=True)
    cut, silent = GeneratedAnswer(text="", reasoning="2 and", is_cut=True), GeneratedAnswer(text="", reasoning="2 and")
    assert list_unfinished_reasoning([done, silent], 128) == []
    (message,) = list_unfinished_reasoning([done, cut, cut], 128)
    assert "2 of 3 were cut at 128 tokens within their reasoning" in message
    assert "set evaluation.maxNewTokens to a higher value" in message
