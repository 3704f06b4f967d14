"""Labels of conversations with tool calls and reasoning, for the chat templates of common model families."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from tests.support.trainer.supervised_texts import decode_supervised
from tests.support.trainer.tiny_model import CHATML, MARKED_CHATML, TRAINING_TIMEOUT, chat, tokenizer
from tests.support.trainer.tool_conversations import (
    MISTRAL_WITH_TOOLS,
    RESULT,
    TOOL,
    build_answer,
    build_call,
    build_result,
    build_tokenizer,
    build_tool_chat,
    read_template,
)

from finetune_trainer.data import chat_template
from finetune_trainer.data.loss_masking import LossMasker
from finetune_trainer.data.rewritten_text import find_removed_text
from finetune_trainer.data.row_types import Chat, RowError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

QUESTION = {"role": "user", "content": "2+2"}
JSON_CALLS = ['{"city": "Rome \\"north\\""}', '{"city": "Oslo", "days": 5, "exact": true}']
XML_CALLS = [
    '<tool_call>\n<function=get_weather>\n<parameter=city>\nRome "north"\n</parameter>\n</function>\n</tool_call>',
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n5\n</parameter>\n"
    "<parameter=exact>\nTrue\n</parameter>\n</function>\n</tool_call>",
]
QWEN_CALLS = [
    f'<tool_call>\n{{"name": "get_weather", "arguments": {call}}}\n</tool_call><|im_end|>' for call in JSON_CALLS
]
LLAMA_CALLS = [f'{{"name": "get_weather", "parameters": {call}}}<|eot_id|>' for call in JSON_CALLS]
GPT_OSS_CALLS = [f" to=functions.get_weather<|channel|>commentary json<|message|>{call}<|call|>" for call in JSON_CALLS]
GLM_CALLS = [
    "\n<think></think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
    '<arg_value>Rome "north"</arg_value>\n</tool_call>',
    "\n<think></think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>5</arg_value>\n"
    "<arg_key>exact</arg_key>\n<arg_value>true</arg_value>\n</tool_call>",
]
MISTRAL_CALLS = [f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {call}}}]<|endoftext|>' for call in JSON_CALLS]
GEMMA_CALLS = [
    '<|tool_call>call:get_weather{city:<|"|>Rome "north"<|"|>}<tool_call|><|tool_response>',
    '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>,days:5,exact:true}<tool_call|><|tool_response>',
]
# The supervised texts of the two calls and the two answers of `build_tool_chat`.
SUPERVISED = {
    "qwen3": [QWEN_CALLS[0], "It is warm.<|im_end|>", QWEN_CALLS[1], "<think>\n\n</think>\n\nIt is cold.<|im_end|>"],
    "qwen2_5": [QWEN_CALLS[0], "It is warm.<|im_end|>", QWEN_CALLS[1], "It is cold.<|im_end|>"],
    "qwen3_5_nothink": [
        f"{XML_CALLS[0]}<|im_end|>",
        "It is warm.<|im_end|>",
        f"{XML_CALLS[1]}<|im_end|>",
        "It is cold.<|im_end|>",
    ],
    "llama3_1": [LLAMA_CALLS[0], "It is warm.<|eot_id|>", LLAMA_CALLS[1], "It is cold.<|eot_id|>"],
    "gptoss": [
        GPT_OSS_CALLS[0],
        "<|channel|>final<|message|>It is warm.",
        GPT_OSS_CALLS[1],
        "<|channel|>final<|message|>It is cold.<|return|>",
    ],
    "glm4moe": [
        GLM_CALLS[0],
        "\n<think></think>\nIt is warm.",
        GLM_CALLS[1],
        "\n<think></think>\nIt is cold.<|endoftext|>",
    ],
    "gemma4": [GEMMA_CALLS[0], "It is warm.<turn|>", GEMMA_CALLS[1], "It is cold.<turn|>"],
    MISTRAL_WITH_TOOLS: [MISTRAL_CALLS[0], " It is warm.<|endoftext|>", MISTRAL_CALLS[1], " It is cold.<|endoftext|>"],
}


def get_template(name: str) -> str:
    return name if "{" in name else read_template(name)


def read_supervised(template: str, row: Chat) -> tuple[list[str], str | None]:
    """Return the supervised texts, and the words that the template removes."""
    words = build_tokenizer(template)
    masker = LossMasker(words)
    rendered = masker.render(row)
    (example,) = masker.tokenize([rendered])
    assert words.decode(example.input_ids).removesuffix("<|endoftext|>") == rendered.text.removesuffix("<|endoftext|>")
    return decode_supervised(words, example), find_removed_text(row, rendered)


@pytest.mark.parametrize(("name", "expected"), SUPERVISED.items(), ids=[name[:20] for name in SUPERVISED])
def test_tool_calls_are_supervised_and_results_are_not(name: str, expected: list[str]) -> None:
    assert read_supervised(get_template(name), build_tool_chat()) == (expected, None)


@pytest.mark.parametrize("name", SUPERVISED, ids=[name[:20] for name in SUPERVISED])
def test_tool_definitions_are_in_the_prompt(name: str) -> None:
    words = build_tokenizer(get_template(name))
    masker = LossMasker(words, "all")
    rows = [Chat(chat("hi", "hello")["messages"], tools) for tools in ([TOOL], [])]
    with_tools, without_tools = (masker.render(row) for row in rows)
    assert with_tools.text[: with_tools.answer_spans[0][0]].count("Current weather of a city.") == 1
    assert "weather" not in without_tools.text
    assert find_removed_text(rows[0], with_tools) is None


@pytest.mark.parametrize("name", SUPERVISED, ids=[name[:20] for name in SUPERVISED])
def test_tool_call_at_the_end_is_supervised(name: str) -> None:
    row = build_tool_chat()
    supervised, removed = read_supervised(get_template(name), replace(row, messages=row.messages[:2]))
    assert (len(supervised), removed) == (1, None)
    assert supervised[0].endswith((SUPERVISED[name][0], f"{SUPERVISED[name][0]}<|endoftext|>"))


_HEADER = re.compile(r"<\|(start|end|user|observation|im_start|im_end)\|>|assistant|<think>|</think>|\s")


# TRL's training templates mark what is trained on.
@pytest.mark.parametrize(
    "name", ["qwen2_5", "llama3", "gptoss", "glm4moe", "qwen3", "qwen3_5_think", "nemotron_3_nano"]
)
@pytest.mark.parametrize("is_marked", [True, False], ids=["markers", "no markers"])
def test_tool_conversation_has_labels_of_trl(name: str, is_marked: bool) -> None:
    template = read_template(f"{name}_training")
    words = build_tokenizer(template)
    row = Chat(chat("a", "b", "c", "d")["messages"]) if name == "llama3" else build_tool_chat()
    encoded = words.apply_chat_template(
        row.messages, tools=row.tools or None, return_dict=True, return_assistant_tokens_mask=True
    )
    masks = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    expected = words.decode([token_id for token_id, is_supervised in masks if is_supervised])
    words.chat_template = template if is_marked else remove_markers(template)
    masker = LossMasker(words)
    (example,) = masker.tokenize([masker.render(row)])
    supervised = decode_supervised(words, example)
    if is_marked:  # line breaks after an answer are not supervised here
        assert "".join(supervised) == re.sub(r"(<\|im_end\|>)\n", r"\1", expected)
        return
    for text in supervised:
        assert text.removesuffix("<|endoftext|>") in expected
        expected = expected.replace(text.removesuffix("<|endoftext|>"), "", 1)
    assert not _HEADER.sub("", expected), "all but what stands between the answers is supervised"


def remove_markers(template: str) -> str:
    """Return the template without its generation markers."""
    for tag in ("{% generation %}", "{%- generation %}", "{%- generation -%}", "{% generation -%}"):
        template = template.replace(tag, "").replace(tag.replace("generation", "endgeneration"), "")
    return template


REASONING = "I add the numbers."
# Template, and the supervised text of an answer with reasoning.
REASONED = {
    "qwen3": f"<think>\n{REASONING}\n</think>\n\n4<|im_end|>",
    "qwen3_5_think": f"{REASONING}\n</think>\n\n4<|im_end|>",
    "qwen3_training": f"<think>\n{REASONING}\n</think>\n\n4<|im_end|>",
    "glm4moe": f"\n<think>{REASONING}</think>\n4<|endoftext|>",
    "gptoss": f"<|channel|>analysis<|message|>{REASONING}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>4<|return|>",
    "nemotron_3_nano": f"{REASONING}\n</think>\n4<|im_end|>",
    "muse_glimmer": f" to=self<|message|>{REASONING}<|eom|><|start|>assistant to=user<|message|>4<|eot|>",
}


@pytest.mark.parametrize(("name", "expected"), REASONED.items(), ids=REASONED)
def test_reasoning_is_supervised_as_rendered(name: str, expected: str) -> None:
    row = Chat([QUESTION, build_answer("4", reasoning_content=REASONING)])
    assert read_supervised(read_template(name), row) == ([expected], None)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "gptoss", "nemotron_3_nano"])
def test_reasoning_of_earlier_turns_is_named_if_removed(name: str) -> None:
    answers = [build_answer("4", reasoning_content="First thought."), build_answer("5", reasoning_content="Second.")]
    row = Chat([QUESTION, answers[0], QUESTION, answers[1]])
    supervised, removed = read_supervised(read_template(name), row)
    assert removed == "First thought."
    assert ("First" in supervised[0], "Second." in supervised[1]) == (False, True)


def test_reasoning_before_a_call_may_differ_from_prompt() -> None:
    call = build_answer("", tool_calls=[build_call(city="Rome")], reasoning_content="I must look.")
    row = Chat([QUESTION, call, build_result(), build_answer("Warm.", reasoning_content="Now I know.")], [TOOL])
    (called, answer), removed = read_supervised(read_template("gptoss"), row)
    assert called == ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
    assert answer.startswith("<|channel|>analysis<|message|>Now I know.<|end|><|start|>assistant<|channel|>final")
    assert removed == "I must look", "the template drops the reasoning before a call once the answer is there"


# Template, the turn of the assistant, and the words that are not supervised.
REMOVED: dict[str, tuple[str, dict[str, Any], str]] = {
    "reasoning, ChatML": (CHATML, build_answer("4", reasoning_content=REASONING), REASONING),
    "reasoning with words of the answer": (CHATML, build_answer("a b c", reasoning_content="b c"), "b c"),
    "calls, ChatML": (CHATML, build_answer("", tool_calls=[build_call(city="Rome")]), "get_weather"),
    "calls, markers": (MARKED_CHATML, build_answer("", tool_calls=[build_call(city="Rome")]), "get_weather"),
    "arguments": (
        CHATML.replace(
            "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}"
        ),
        build_answer("", tool_calls=[build_call(city="Rome")]),
        "Rome",
    ),
    "second call": ("gptoss", build_answer("", tool_calls=[build_call(city="Rome"), build_call(city="Oslo")]), "Oslo"),
    "text beside a call": ("llama3_1", build_answer("I look.", tool_calls=[build_call(city="Rome")]), "I look."),
}


@pytest.mark.parametrize(("template", "answer", "removed"), REMOVED.values(), ids=REMOVED)
def test_parts_of_an_answer_that_template_removes_are_named(
    template: str, answer: dict[str, Any], removed: str
) -> None:
    source = template if "{" in template else read_template(template)
    assert read_supervised(source, Chat([QUESTION, answer]))[1] == removed


def test_tool_definitions_that_template_removes_are_named() -> None:
    row = Chat(chat("Call get_weather for your city", "no")["messages"], [TOOL])
    assert read_supervised(CHATML, row)[1] == "Current weather of a"


ARGUMENTS = {
    "text": "a \"b\"\n\tc\\d é <x> & 'y'",
    "n": -1.5e-7,
    "t": True,
    "x": None,
    "l": ["p q", {"k": "z\n"}],
    "e": "",
}
NOTATIONS = {
    "JSON": "{{ call.function.arguments | tojson }}",
    "JSON in ASCII": "{{ call.function.arguments | tojson(ensure_ascii=True) }}",
    "Python": "{{ call.function.arguments }}",
    "tags": "{% for k, v in call.function.arguments.items() %}<parameter={{ k }}>\n{{ v }}\n</parameter>{% endfor %}",
    "sorted": "{% for k, v in call.function.arguments | dictsort %}{{ k }}={{ v | tojson }},{% endfor %}",
}


@pytest.mark.parametrize("notation", NOTATIONS.values(), ids=NOTATIONS)
def test_arguments_in_any_notation_are_no_removed_words(notation: str) -> None:
    calls = "{% for call in m.tool_calls %}{{ call.function.name }}:" + notation + "{% endfor %}"
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}" + calls)
    row = Chat([QUESTION, build_answer("", tool_calls=[build_call(**ARGUMENTS), build_call(text="more")])])
    supervised, removed = read_supervised(template, row)
    assert (len(supervised), removed) == (1, None)


def test_tool_result_within_an_answer_is_refused() -> None:
    turns = [QUESTION, build_answer("Wait.", tool_calls=[build_call(city="Rome")]), build_result(), build_answer("ok")]
    with pytest.raises(RowError, match=r"writes messages\[2\], the result of a tool, into the answer before it"):
        read_supervised(read_template("gemma4"), Chat(turns, [TOOL]))


def test_tool_calls_without_start_are_refused() -> None:
    with pytest.raises(RowError, match="does not separate messages"):
        read_supervised(read_template("deepseekv3"), build_tool_chat())


def test_tool_calls_as_text_and_null_content_are_rendered() -> None:
    row = Chat(build_tool_chat().messages[:4])
    supervised, removed = read_supervised(read_template("deepseekv3"), row)
    call, answer = (text.replace("\uff5c", "|") for text in supervised)
    assert call.startswith("<|tool▁calls▁begin|><|tool▁call▁begin|>function<|tool▁sep|>get_weather\n```json\n")
    assert call.endswith("<|tool▁calls▁end|><|end▁of▁sentence|>")
    assert (answer, removed) == ("It is warm.<|end▁of▁sentence|>", None)


@pytest.mark.parametrize("template", [CHATML, MARKED_CHATML], ids=["no markers", "markers"])
def test_unsupervised_turns_have_no_labels(template: str) -> None:
    words = tokenizer(template)
    turns = chat("a", "bad", "c", "good", "d", "worse")["messages"]
    for loss, expected in (("completion", ["good<|im_end|>"]), ("all", None)):
        masker = LossMasker(words, "all" if loss == "all" else "completion")
        (example,) = masker.tokenize([masker.render(Chat(turns, unsupervised_turns=frozenset({1, 5})))])
        supervised = decode_supervised(words, example)
        assert expected is None or supervised == expected
        assert not any(word in "".join(supervised) for word in ("bad", "worse"))
        assert example.end_token_id is None
    assert "".join(supervised).count("user\n") == 3


def test_unsupervised_last_turn_has_no_eos_label() -> None:
    words = tokenizer(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    masker = LossMasker(words)
    row = Chat(chat("a", "b", "c", "d")["messages"], unsupervised_turns=frozenset({3}))
    (example,) = masker.tokenize([masker.render(row)])
    assert words.decode(example.input_ids).endswith(words.eos_token)
    assert decode_supervised(words, example) == ["b"]


def test_unsupervised_turns_of_template_that_marks_an_ending_apart() -> None:
    turns = chat("a", "bad", "c", "good")["messages"]
    words = build_tokenizer(read_template("phi3_training"))
    masker = LossMasker(words)
    (example,) = masker.tokenize([masker.render(Chat(turns, unsupervised_turns=frozenset({1})))])
    (supervised,) = decode_supervised(words, example)
    assert supervised.startswith("good<|end|>\n<|endoftext|>")


def test_unsupervised_turn_with_other_number_of_marked_texts_is_refused() -> None:
    template = MARKED_CHATML.replace("{% generation %}", "{% generation %}>{% endgeneration %}+{% generation %}")
    row = Chat(chat("a", "b", "c", "d")["messages"], unsupervised_turns=frozenset({1}))
    with pytest.raises(RowError, match="marks 4 texts for 2 answers"):
        LossMasker(tokenizer(template)).render(row)


@pytest.mark.parametrize(
    ("name", "role"),
    [("qwen3", "system"), ("gemma3", "system"), ("phi3", "system"), ("llama3_1", "developer"), ("gptoss", "developer")],
)
def test_developer_turn_is_rendered_in_the_role_that_the_template_writes(name: str, role: str) -> None:
    words = build_tokenizer(read_template(name))
    turns = [{"role": "developer", "content": "Be brief."}, *chat("a", "b")["messages"]]
    row, expected_turns = Chat(turns), [{**turns[0], "role": role}, *turns[1:]]
    rendered = LossMasker(words).render(row)
    assert rendered.text == words.apply_chat_template(expected_turns, tokenize=False)
    assert "Be brief." in rendered.text
    assert find_removed_text(row, rendered) is None


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gptoss", "deepseek_r1_distill", MISTRAL_WITH_TOOLS, CHATML])
def test_renderings_do_not_grow_with_turns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masker = LossMasker(build_tokenizer(get_template(name)))
    has_tools = name not in ("deepseek_r1_distill", CHATML)
    rounds = build_tool_chat().messages if has_tools else chat("Weather?", "Warm.", "And now?", "Cold.")["messages"]
    masker.render(Chat(rounds))  # what a template writes is found out once
    lengths: list[int] = []
    render = chat_template.ChatTemplate.render

    def count(template: chat_template.ChatTemplate, *args: Any, **options: Any) -> str:
        lengths.append(len(args[0]))
        return render(template, *args, **options)

    monkeypatch.setattr(chat_template.ChatTemplate, "render", count)
    numbered = [{**turn, "content": turn["content"] and f"{turn['content']} {i}"} for i, turn in enumerate(rounds * 10)]
    rendered = masker.render(Chat(numbered, [TOOL] if has_tools else []))
    assert len(rendered.answer_spans) == len(numbered) // 2
    assert len(lengths) <= 7, "the conversation, and two for each of three skeletons"
    texts = [rendered.text[start:end] for start, end in rendered.answer_spans]
    assert all(str(RESULT) not in text for text in texts)
    assert all(
        turn["content"] in text
        for turn, text in zip([turn for turn in numbered if turn["role"] == "assistant"], texts, strict=True)
    )
