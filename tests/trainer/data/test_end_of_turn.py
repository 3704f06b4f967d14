"""End of an answer: labels and stop tokens for the chat templates of common model families."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from tests.support.trainer.chat_template_families import (
    ALPACA,
    BRACKETS_TEMPLATE,
    FAMILIES,
    HEADINGS_TEMPLATE,
    LLAMA3,
    NO_END_TEMPLATE,
    TemplateFamily,
)
from tests.support.trainer.supervised_texts import decode_supervised
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, chat

from finetune_trainer.contract import Reason
from finetune_trainer.data.end_of_turn import choose_published_eos_token, get_stop_token_ids
from finetune_trainer.data.loss_masking import LossMasker, TokenizedConversation
from finetune_trainer.data.row_types import Chat, PlainText, PromptCompletion, Row
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]


def encode_row(
    family: TemplateFamily, row: Row | dict[str, Any], loss: Literal["completion", "all"] = "completion"
) -> TokenizedConversation:
    labeller = LossMasker(family.build_tokenizer(), loss)
    return labeller.tokenize([labeller.render(Chat(row["messages"]) if isinstance(row, dict) else row)])[0]


@pytest.mark.parametrize(("family", "expected", "stops", "eos"), FAMILIES.values(), ids=FAMILIES)
def test_template_family_learns_end_and_stops_there(
    family: TemplateFamily, expected: list[str], stops: list[str], eos: str | None
) -> None:
    words = family.build_tokenizer()
    assert decode_supervised(family.build_tokenizer(), encode_row(family, chat("a", "1", "b", "2"))) == expected
    assert words.convert_ids_to_tokens(get_stop_token_ids(words)) == stops
    assert choose_published_eos_token(words) == (eos or family.eos_token)


LLAMA3_WORDS = TemplateFamily(LLAMA3)
# Edge cases: model family, row, and the texts that the loss is computed on.
ROWS: dict[str, tuple[TemplateFamily, Row | dict[str, Any], list[str]]] = {
    "an answer that ends in a special token of its own": (
        TemplateFamily(CHATML),
        PromptCompletion("a", "label <|eot_id|>"),
        ["label <|eot_id|><|im_end|>"],
    ),
    "an answer that ends as the template does": (
        TemplateFamily(CHATML),
        PromptCompletion("a", "b<|im_end|>"),
        ["b<|im_end|><|im_end|>"],
    ),
    "no start of the user's next turn": (LLAMA3_WORDS, chat("a", "1", "b"), ["1<|eot_id|>"]),
    "the user has the last word, ordinary text": (
        TemplateFamily(BRACKETS_TEMPLATE),
        chat("a", "1", "b"),
        ["1<|endoftext|>"],
    ),
    "the user has the last word, nothing": (TemplateFamily(NO_END_TEMPLATE), chat("a", "1", "b"), ["1<|endoftext|>"]),
    "blanks of the answer, ordinary text": (
        TemplateFamily(BRACKETS_TEMPLATE),
        chat("a", "1 \n"),
        ["1 \n<|endoftext|>"],
    ),
    "prompt and completion": (TemplateFamily(None), PromptCompletion("a", " b"), [" b<|endoftext|>"]),
    "a completion that ends in another special token": (
        TemplateFamily(None),
        PromptCompletion("a", " b<|eot_id|>"),
        [" b<|eot_id|><|endoftext|>"],
    ),
    "a completion that brings EOS and a line break": (
        TemplateFamily(None),
        PromptCompletion("a", " b<|endoftext|>\n"),
        [" b<|endoftext|>"],
    ),
    "text that was rendered before": (LLAMA3_WORDS, PlainText("a b<|eot_id|>"), [" b<|eot_id|>"]),
    "text": (LLAMA3_WORDS, PlainText("a b"), [" b<|endoftext|>"]),
}


@pytest.mark.parametrize(("family", "row", "expected"), ROWS.values(), ids=ROWS)
def test_end_of_turn_is_trained_once_after_last_answer(
    family: TemplateFamily, row: Row | dict[str, Any], expected: list[str]
) -> None:
    assert decode_supervised(family.build_tokenizer(), encode_row(family, row)) == expected


@pytest.mark.parametrize("template", [BRACKETS_TEMPLATE, HEADINGS_TEMPLATE], ids=["same line", "line of its own"])
@pytest.mark.parametrize("loss", ["completion", "all"])
def test_end_of_turn_ordinary_text_is_replaced_by_eos(template: str, loss: Literal["completion", "all"]) -> None:
    family = TemplateFamily(template)
    text = family.build_tokenizer().decode(encode_row(family, chat("a", "1", "b", "2"), loss).input_ids)
    assert text.endswith("2<|endoftext|>")
    assert text.lower().count("end]") + text.count("### End") == 3  # of the two questions and the first answer


@pytest.mark.parametrize(
    ("template", "row"),
    [
        (BRACKETS_TEMPLATE, chat("a", "1")),
        (ALPACA, chat("a", "1")),
        (None, PromptCompletion("a", "b")),
        (None, PlainText("a")),
    ],
    ids=["ordinary text", "blanks", "prompt and completion", "text"],
)
def test_end_of_turn_missing_is_refused(template: str | None, row: Row | dict[str, Any]) -> None:
    with pytest.raises(
        TrainerError, match=r"the tokenizer has no eos_token.*set eos_token in tokenizer_config"
    ) as caught:
        encode_row(TemplateFamily(template, eos_token=None), row)
    assert caught.value.reason is Reason.MODEL_INVALID


def test_template_requiring_system_turn_is_supported() -> None:
    needs_system = "{% if messages[0].role != 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + LLAMA3
    family = TemplateFamily(needs_system)
    assert decode_supervised(family.build_tokenizer(), encode_row(family, chat("a", "1", system="s"))) == [
        "1<|eot_id|>"
    ]
    assert (
        family.build_tokenizer().convert_ids_to_tokens(get_stop_token_ids(family.build_tokenizer()))[0] == "<|eot_id|>"
    )


@pytest.mark.parametrize("flags", [{"rstrip": True}, {"lstrip": True}], ids=["blanks after it", "blanks before it"])
def test_end_of_turn_token_with_blanks_is_trained(flags: dict[str, bool]) -> None:
    from tokenizers import AddedToken

    words = FAMILIES["Phi 3"][0].build_tokenizer()
    words.backend_tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, **flags)])
    labeller = LossMasker(words)
    example = labeller.tokenize([labeller.render(Chat(chat("a", "1", "b", "2")["messages"]))])[0]
    ends = [words.convert_ids_to_tokens(label) for label in example.labels if label in get_stop_token_ids(words)]
    assert ends == ["<|end|>", "<|end|>", "<|endoftext|>"]
