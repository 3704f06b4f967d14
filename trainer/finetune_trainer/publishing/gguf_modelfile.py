"""Writes the Modelfile from which Ollama creates a model (https://docs.ollama.com/modelfile).

Ollama has no Jinja: it knows the chat templates of some families, and for all others it sends the prompt as it is. The
Modelfile therefore has a Go template, if that renders conversations exactly like the chat template of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Render = Callable[[Sequence[Mapping[str, str]]], str]

_BASE_NAME = "base.gguf"
_ROLES = ("system", "user", "assistant")
_MARKS = {role: f"\x01{role}\x02" for role in _ROLES}
"""Contents of messages that no template contains."""
_PROBES = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


@dataclass(frozen=True)
class GoTemplate:
    """A template of Ollama: text around the content of each role, the default system message, and the start of the
    answer."""

    around: Mapping[str, tuple[str, str]]
    default_start: str
    answer_start: str

    def render(self, roles: Sequence[str]) -> str:
        """Return what Ollama renders for messages of these roles, whose content is that of a probe."""
        start = self.default_start if "system" not in roles else ""
        return start + "".join(_MARKS[role].join(self.around[role]) for role in roles) + self.answer_start

    def to_text(self) -> str:
        """Return the template in Go's language. Its texts are literal."""
        branches = [
            f'{{{{ {"if" if role == "system" else "else if"} eq .Role "{role}" }}}}{start}{{{{ .Content }}}}{end}'
            for role, (start, end) in self.around.items()
        ]
        default = f"{{{{ if not .System }}}}{self.default_start}{{{{ end }}}}" if self.default_start else ""
        return f"{default}{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{self.answer_start}"


def build_modelfile(adapter_name: str | None, model_name: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the Modelfile of a merged model, or else of an adapter."""
    lines = ["# ollama create NAME -f Modelfile"]
    if model_name:
        lines += [f"FROM ./{model_name}"]
    else:
        lines += [
            f"# {_BASE_NAME} is the base model as a GGUF file, which you provide. It may also be a model in Ollama.",
            f"FROM ./{_BASE_NAME}",
            f"ADAPTER ./{adapter_name}",
        ]
    template = derive_template(lambda messages: _render(tokenizer, messages))
    if template is None:
        lines += ["# Ollama's template language cannot express the chat template, so there is no TEMPLATE here."]
    else:
        lines += [f'TEMPLATE """{template.to_text()}"""']
    if tokenizer.eos_token and '"' not in tokenizer.eos_token:
        lines += [f'PARAMETER stop "{tokenizer.eos_token}"']
    return "\n".join(lines) + "\n"


def derive_template(render: Render) -> GoTemplate | None:
    """Return the Go template that renders conversations like `render`, or None if there is none.

    `render` renders messages and the start of the answer, as the chat template does.
    """
    try:
        template = _derive(lambda roles: render([{"role": role, "content": _MARKS[role]} for role in roles]))
    except (TemplateError, ValueError):
        return None
    pairs = template.around.values()
    texts = [template.default_start, template.answer_start, *(text for pair in pairs for text in pair)]
    return None if any("{{" in text or '"""' in text or "\x01" in text for text in texts) else template


def _derive(render: Callable[[Sequence[str]], str]) -> GoTemplate:
    """Derive the texts from the differences of probes. Raises `ValueError` if another probe differs."""
    before_user, after_user = _split(render(("user",)), "user")
    before_system, rest = _split(render(("system", "user")), "system")
    middle, _ = _split(rest, "user")
    turn, _ = _split(_split(render(("user", "assistant", "user")), "user")[1], "user")
    before_answer, between = _split(turn, "assistant")
    user_start, user_end = _common_end(middle, before_user, between), _common_start(after_user, before_answer)
    template = GoTemplate(
        around={
            "system": (before_system, middle.removesuffix(user_start)),
            "user": (user_start, user_end),
            "assistant": (before_answer.removeprefix(user_end), between.removesuffix(user_start)),
        },
        default_start=before_user.removesuffix(user_start),
        answer_start=after_user.removeprefix(user_end),
    )
    if any(template.render(roles) != render(roles) for roles in _PROBES):
        raise ValueError("the chat template depends on more than the role of a message")
    return template


def _split(text: str, role: str) -> tuple[str, str]:
    start, mark, end = text.partition(_MARKS[role])
    if not mark:
        raise ValueError(f"the chat template leaves out the role {role}")
    return start, end


def _common_end(*texts: str) -> str:
    return _common_start(*(text[::-1] for text in texts))[::-1]


def _common_start(*texts: str) -> str:
    length = next((index for index, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), None)
    return min(texts, key=len) if length is None else texts[0][:length]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> str:
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template")
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return str(text).removeprefix(tokenizer.bos_token) if _adds_bos(tokenizer) else str(text)


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer adds the BOS token to a text, as Ollama then does too."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
