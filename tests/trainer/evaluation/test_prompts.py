"""Prompts and references from tokenized rows: references are the answers without reasoning and template markers."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.trainer.chat_template_families import GPT_OSS, TemplateFamily
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, chat, import_libraries

from finetune_trainer.data.loss_masking import LossMasker
from finetune_trainer.data.row_types import Chat

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

THINKING = "<think>\nI like it.\n</think>\n\npositive"
THINK_TOKENS = ("<think>", "</think>")
EMPTY_THINK = CHATML.replace(
    "{{ m.content }}",
    "{{ '<think></think>\n' if m.role == 'assistant' and '<think>' not in m.content }}{{ m.content }}",
)
HARMONY_TOKENS = ("<|start|>", "<|end|>", "<|return|>", "<|channel|>", "<|message|>")
# Family, answer of the row, reference, and whole text of the answer.
REFERENCES: dict[str, tuple[TemplateFamily, str, str, str]] = {
    "no reasoning": (TemplateFamily(CHATML), "positive", "positive", "positive"),
    "reasoning": (TemplateFamily(CHATML), THINKING, "positive", THINKING),
    "reasoning in tokens": (TemplateFamily(CHATML, plain_tokens=THINK_TOKENS), THINKING, "positive", THINKING),
    "reasoning in special tokens": (
        TemplateFamily(CHATML, special_tokens=THINK_TOKENS),
        THINKING,
        "positive",
        "I like it.\n\n\npositive",
    ),
    "empty reasoning of the template": (
        TemplateFamily(EMPTY_THINK, plain_tokens=THINK_TOKENS),
        "positive",
        "positive",
        "<think></think>\npositive",
    ),
    "final channel": (
        TemplateFamily(GPT_OSS, special_tokens=HARMONY_TOKENS, eos_token="<|return|>"),
        "positive",
        "positive",
        "finalpositive",
    ),
    "reasoning without end": (
        TemplateFamily(CHATML),
        "<think>\nI like it.",
        "<think>\nI like it.",
        "<think>\nI like it.",
    ),
}


@pytest.mark.parametrize(("family", "answer", "reference", "text"), REFERENCES.values(), ids=REFERENCES)
def test_prompt_reference_has_no_reasoning(family: TemplateFamily, answer: str, reference: str, text: str) -> None:
    import_libraries()
    from finetune_trainer.evaluation.prompts import extract_prompt
    from finetune_trainer.modeling.generation import CompletionDecoder

    tokenizer = family.build_tokenizer()
    row: dict[str, Any] = chat("How is it?", answer)
    masker = LossMasker(tokenizer)
    (tokens,) = masker.tokenize([masker.render(Chat(row["messages"]))])
    prompt = extract_prompt(tokens.input_ids, tokens.labels, CompletionDecoder(tokenizer))
    assert prompt is not None
    assert (prompt.reference, prompt.answer.text) == (reference, text)
