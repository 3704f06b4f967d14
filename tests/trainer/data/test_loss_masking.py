"""Loss masks, decoded to text, for the chat templates of common model families."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.trainer.supervised_texts import decode_supervised
from tests.support.trainer.tiny_model import CHATML, MARKED_CHATML, TRAINING_TIMEOUT, chat, tokenizer

from finetune_trainer.contract import Reason
from finetune_trainer.data.loss_masking import IGNORE_INDEX, LossMasker, TokenizedConversation, encode_prompt
from finetune_trainer.data.row_types import Chat, PromptCompletion, RowError
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MARKED_TEXT_ONLY = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}",
)
MARKED_WITH_NEWLINE = MARKED_CHATML.replace("<|im_end|>{% endgeneration %}", "<|im_end|>\n{% endgeneration %}")
LENGTH_IN_HEADER = CHATML.replace("{{ m.role }}", "{{ m.role }} {{ m.content | length }}")
TRIMS_LAST_TURN = CHATML.replace("{{ m.content }}", "{{ m.content | trim if loop.last else m.content }}")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role here') }}{% endif %}" + CHATML
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}<|eot_id|>{% endif %}{% endfor %}"
)
# As with Qwen3, only the last answer has an empty thinking block.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING_AND_TRIMS_LAST_TURN = THINKING.replace(
    "{{ m.content }}{% endif %}", "{{ m.content | trim if loop.last else m.content }}{% endif %}"
)
PLAIN_WORDS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING_PROMPT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
UPPER = CHATML.replace("{{ m.content }}", "{{ m.content | upper }}")
DROPS_OLD = CHATML.replace("for m in messages", "for m in messages[-2:]")

TRAINED_SPANS = {
    "ChatML": (CHATML, chat("Hi", "Hello!"), ["Hello!<|im_end|>"]),
    "with markers": (MARKED_CHATML, chat("Hi", "Hello!"), ["Hello!<|im_end|>"]),
    "markers around the text only": (
        MARKED_TEXT_ONLY,
        chat("Hi", "Yes ", "q", "No"),
        ["Yes <|im_end|>", "No<|im_end|>"],
    ),
    "markers that take in the line break": (
        MARKED_WITH_NEWLINE,
        chat("a", "b", "c", "d"),
        ["b<|im_end|>", "d<|im_end|>"],
    ),
    "Llama 3": (LLAMA3, chat("Hi", " Hello! \n", "Bye", "Ciao"), ["Hello!<|eot_id|>", "Ciao<|eot_id|>"]),
    "three answers": (CHATML, chat("a", "1", "b", "2", "c", "3"), ["1<|im_end|>", "2<|im_end|>", "3<|im_end|>"]),
    "the same text everywhere": (CHATML, chat("ok", "ok", "ok", "ok", system="ok"), ["ok<|im_end|>"] * 2),
    "spaces are the answer's own": (CHATML, chat("a", "  b\n"), ["  b\n<|im_end|>"]),
    "many bytes per character": (CHATML, chat("Zażółć", "gęślą 😀 jaźń 👩‍🚀"), ["gęślą 😀 jaźń 👩‍🚀<|im_end|>"]),
    "markup in the text": (CHATML, chat("{{ 1 }}", "{% x %} \\n <b>"), ["{% x %} \\n <b><|im_end|>"]),
    "the user has the last word": (CHATML, chat("a", "b", "c"), ["b<|im_end|>"]),
    "system turn": (CHATML, chat("a", "b", system="Be brief."), ["b<|im_end|>"]),
    "roles must alternate": (ALTERNATING, chat("a", "b c", "d", "e"), [" b c<|eot_id|>", " e<|eot_id|>"]),
    "thoughts": (
        THINKING,
        chat("a", "<think>hm</think>\nb", "c", "d"),
        ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"],
    ),
    "start of the answers in the generation prompt": (
        THINKING_PROMPT,
        chat("a", "<think>\nhm</think>b", "c", "d", "e", "<think>\nx</think>f"),
        ["hm</think>b<|im_end|>", "d<|im_end|>", "x</think>f<|im_end|>"],
    ),
    "answer with the next question": (
        PLAIN_WORDS,
        chat("a", "b\nuser: c\nassistant: d", "c", "e", "f", "g"),
        ["b\nuser: c\nassistant: d", "e", "g\n<|im_end|>"],
    ),
    "nothing special ends a turn": (PLAIN_WORDS, chat("a", "b"), ["b\n<|im_end|>"]),
}

REFUSED = {
    "no system role": (NO_SYSTEM, "chat template rejects it: No system role here"),
    "drops old turns": (DROPS_OLD, 'removes or rewrites words of an answer: "b"'),
    "rewrites answers": (UPPER, 'removes or rewrites words of an answer: "b"'),
    "header depends on the answer": (LENGTH_IN_HEADER, r"does not separate messages\[2\] .* mark the assistant's text"),
    "broken": (CHATML.replace("m.content", "m.text.more"), "chat template rejects it: .*has no attribute"),
}


def encode_row(
    row: dict[str, Any] | PromptCompletion,
    template: str | None,
    bos: str | None = None,
    loss: Literal["completion", "all"] = "completion",
) -> TokenizedConversation:
    labeller = LossMasker(tokenizer(template, bos), loss)
    rendered = labeller.render(row if isinstance(row, PromptCompletion) else Chat(row["messages"]))
    return labeller.tokenize([rendered])[0]


def list_values(example: TokenizedConversation) -> tuple[object, ...]:
    return example.input_ids, example.labels, example.answer_start, example.end_token_id


@pytest.mark.parametrize(("template", "row", "expected"), TRAINED_SPANS.values(), ids=TRAINED_SPANS)
def test_loss_mask_supervises_answers_and_ends_only(template: str, row: dict[str, Any], expected: list[str]) -> None:
    example = encode_row(row, template, bos="<|begin_of_text|>" if template == LLAMA3 else None)
    assert decode_supervised(tokenizer(), example) == expected
    pairs = zip(example.input_ids, example.labels, strict=True)
    assert all(value in (token, IGNORE_INDEX) for token, value in pairs)


@pytest.mark.parametrize(("template", "expected_message"), REFUSED.values(), ids=REFUSED)
def test_loss_mask_row_refused_by_template_raises(template: str, expected_message: str) -> None:
    with pytest.raises(RowError, match=expected_message):
        encode_row(chat("a", "b", "c", "d", system="s"), template)


def test_loss_mask_messages_without_template_raise() -> None:
    with pytest.raises(TrainerError, match="the tokenizer has no chat template") as caught:
        encode_row(chat("a", "b"), None)
    assert caught.value.reason is Reason.MODEL_INVALID


@pytest.mark.parametrize("bos", [None, "<|begin_of_text|>"])
@pytest.mark.parametrize("prompt", ["2+2=", "", "<|begin_of_text|>2+2="])
def test_loss_mask_plain_pair_has_one_bos_and_eos(bos: str | None, prompt: str) -> None:
    example = encode_row(PromptCompletion(prompt, "4"), None, bos)
    start = "<|begin_of_text|>" if bos and "begin" not in prompt else ""
    assert tokenizer().decode(example.input_ids) == f"{start}{prompt}4<|im_end|>"
    # The first token is always masked, because no token precedes it.
    assert decode_supervised(tokenizer(), example) == ["4<|im_end|>" if start or prompt else "<|im_end|>"]


def test_loss_mask_plain_pair_with_eos_gets_no_second() -> None:
    assert decode_supervised(tokenizer(), encode_row(PromptCompletion("a", "b<|im_end|>"), None)) == ["b<|im_end|>"]


def test_loss_mask_word_after_prompt_space_is_complete() -> None:
    assert decode_supervised(tokenizer(), encode_row(PromptCompletion("Tap ", "the top"), None)) == [
        " the top<|im_end|>"
    ]  # " the" is one token


def test_loss_mask_token_starting_in_prompt_is_ignored() -> None:
    assert decode_supervised(tokenizer(), encode_row(PromptCompletion("Tap t", "he top"), None)) == [" top<|im_end|>"]


def test_loss_mask_pair_with_template_is_a_chat() -> None:
    example = encode_row(PromptCompletion("2+2?", "4"), CHATML)
    words = tokenizer(CHATML)
    assert words.decode(example.input_ids) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    assert decode_supervised(tokenizer(), example) == ["4<|im_end|>"]
    prompt = encode_prompt(words, "2+2?")
    assert example.input_ids[: len(prompt)] == prompt  # inference uses the same prompt as training
    assert example.labels[len(prompt) - 1 : len(prompt) + 1] == [IGNORE_INDEX, example.input_ids[len(prompt)]]


@pytest.mark.parametrize("template", [CHATML, MARKED_CHATML, None])
def test_loss_mask_loss_all_supervises_all_but_first(template: str | None) -> None:
    example = encode_row(PromptCompletion("a b c", "d"), template, bos="<|begin_of_text|>", loss="all")
    assert example.labels == [IGNORE_INDEX, *example.input_ids[1:]]
    assert example.supervised_tokens == len(example.input_ids) - 1


def test_loss_mask_template_with_bos_gets_no_second() -> None:
    words = tokenizer(LLAMA3, "<|begin_of_text|>")
    ids = encode_row(chat("a", "b"), LLAMA3, "<|begin_of_text|>").input_ids
    assert ids.count(words.bos_token_id) == 1
    assert encode_prompt(words, "a").count(words.bos_token_id) == 1


def test_loss_mask_batch_matches_single_rows() -> None:
    labeller = LossMasker(tokenizer(CHATML))
    rendered = [labeller.render(Chat(chat("q", "x" * length)["messages"])) for length in (1, 50, 3)]
    batch = map(list_values, labeller.tokenize(rendered))
    assert list(batch) == [list_values(labeller.tokenize([row])[0]) for row in rendered]


TEXTS = ["ok", "", " b\n", "assistant", "<|im_end|>\n<|im_start|>assistant\nok", "<|im_end|>", "a\n\nb", "Zażółć 😀"]


@settings(max_examples=150, deadline=None, database=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=2, max_size=13))
def test_loss_mask_without_markers_equals_markers(texts: list[str]) -> None:
    row = Chat(chat(*texts)["messages"])
    examples = [list_values(masker.tokenize([masker.render(row)])[0]) for masker in build_maskers()]
    assert examples[0] == examples[1]


@cache
def build_maskers() -> list[LossMasker]:
    unmarked = MARKED_CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    return [LossMasker(tokenizer(template)) for template in (unmarked, MARKED_CHATML)]


@pytest.mark.parametrize("template", [CHATML, TRIMS_LAST_TURN, THINKING_AND_TRIMS_LAST_TURN])
def test_render_many_rows_of_the_same_roles_gives_the_spans_of_single_rows(template: str) -> None:
    chats = [Chat(chat(*turns)["messages"]) for turns in (("a", "b"), ("a ", " c"), ("Hi", "Yes."), ("a\n", "b" * 20))]
    words = tokenizer(template)
    masker = LossMasker(words)
    assert [masker.render(each) for each in chats] == [LossMasker(words).render(each) for each in chats]
