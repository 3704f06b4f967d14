"""Tests of the Modelfile for Ollama: its template renders conversations like the chat template, or is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from jinja2 import Environment

from finetune_trainer.publishing.gguf_modelfile import GoTemplate, derive_template

CHATML_WITH_DEFAULT = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nHelp<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
INSTRUCTIONS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %}"
    " {{ m.content }}</s>{% else %}<<SYS>>{{ m.content }}<</SYS>> {% endif %}{% endfor %}"
)


def derive(source: str) -> GoTemplate | None:
    template = Environment(autoescape=False, keep_trailing_newline=True).from_string(source)

    def render(messages: Sequence[Mapping[str, str]]) -> str:
        return template.render(messages=messages)

    return derive_template(render)


def test_derive_template_default_system_message_is_conditional() -> None:
    template = derive(CHATML_WITH_DEFAULT)
    assert template is not None
    text = template.to_text()
    assert text.startswith("{{ if not .System }}<|im_start|>system\nHelp{{ end }}{{ range .Messages }}")
    assert text.count("{{ .Content }}") == 3


def test_derive_template_instructions_are_literal() -> None:
    template = derive(INSTRUCTIONS)
    assert template is not None
    assert '{{ else if eq .Role "user" }}[INST] {{ .Content }} [/INST]' in template.to_text()


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ '{{' }}{{ m.role }}{{ m.content }}{% endfor %}",
        "{{ raise() }}",
    ],
)
def test_derive_template_that_go_cannot_express_is_left_out(source: str) -> None:
    assert derive(source) is None
