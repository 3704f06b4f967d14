"""Tokenizers and chat templates like those of model families, with the vocabulary of the tiny model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.trainer.tiny_model import CHATML, MARKED_CHATML, tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA2 = MISTRAL.removeprefix("{{ bos_token }}").replace("{{ eos_token }}", " {{ eos_token }}{{ bos_token }}")
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
    "{% if m.role == 'assistant' %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>"
    "{% else %}<|USER_TOKEN|>{{ m.content }}{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{% endif %}"
)
THREE_ENDS_TEMPLATE = COMMAND_R.replace("<|END_RESPONSE|>", "<|END_RESPONSE|><|END_ACTION|>")
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|Assistant|>{{ m.content }}"
    "<|end▁of▁sentence|>{% else %}<|User|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}<|start|>{{ m.role }}{{ '<|channel|>final' if m.role == 'assistant' }}<|message|>"
    "{{ m.content }}{% if m.role == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
BRACKETS_TEMPLATE = (
    "{% for m in messages %}[{{ m.role | upper }}] {{ m.content }} [/END]\n{% endfor %}"
    "{% if add_generation_prompt %}[ASSISTANT] {% endif %}"
)
HEADINGS_TEMPLATE = (
    "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n### End\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)
ALPACA = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
NO_END_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n{{ m.content }}"
    "{% else %}<|user|>\n{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TAGGED_ANSWER_TEMPLATE = CHATML.replace(
    "{{ m.content }}", "{% if m.role == 'assistant' %}<r>{{ m.content }}</r>{% else %}{{ m.content }}{% endif %}"
)
MARKED_BRACKETS_TEMPLATE = BRACKETS_TEMPLATE.replace(
    "{{ m.content }} [/END]",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }} [/END]{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}",
)
HALF_MARKED_TEMPLATE = COMMAND_R.replace(
    "{{ m.content }}<|END_RESPONSE|>", "{% generation %}{{ m.content }}<|END_RESPONSE|>{% endgeneration %}"
)


@dataclass(frozen=True)
class TemplateFamily:
    """A tokenizer and its template. `special` and `plain` tokens are added to the tiny vocabulary."""

    template: str | None
    special_tokens: tuple[str, ...] = ()
    plain_tokens: tuple[str, ...] = ()
    eos_token: str | None = "<|endoftext|>"

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        from tokenizers import AddedToken
        from transformers import PreTrainedTokenizerFast

        backend = tokenizer(None).backend_tokenizer
        backend.add_special_tokens([AddedToken(token, special=True) for token in self.special_tokens])
        backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in self.plain_tokens])
        fast_tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<|pad|>", eos_token=self.eos_token, bos_token="<|begin_of_text|>"
        )
        fast_tokenizer.chat_template = self.template
        return fast_tokenizer


IM_END_TOKEN = "<|im_end|>"
PLAIN_TOKEN_CHATML = CHATML.replace("<|im_start|>", "<|turn|>").replace(IM_END_TOKEN, "<|turn_end|>")
# For two answers, 1 and 2, to a and b: the supervised text, the stop tokens, and the published EOS token.
FAMILIES: dict[str, tuple[TemplateFamily, list[str], list[str], str | None]] = {
    "ChatML": (
        TemplateFamily(CHATML, eos_token=IM_END_TOKEN),
        ["1<|im_end|>", "2<|im_end|>"],
        [IM_END_TOKEN],
        IM_END_TOKEN,
    ),
    "ChatML, base model": (
        TemplateFamily(CHATML),
        ["1<|im_end|>", "2<|im_end|>"],
        [IM_END_TOKEN, "<|endoftext|>"],
        IM_END_TOKEN,
    ),
    "ChatML, end not flagged special": (
        TemplateFamily(PLAIN_TOKEN_CHATML, plain_tokens=("<|turn|>", "<|turn_end|>")),
        ["1<|turn_end|>", "2<|turn_end|>"],
        ["<|turn_end|>", "<|endoftext|>"],
        "<|turn_end|>",
    ),
    "ChatML, not in the vocabulary": (
        TemplateFamily(PLAIN_TOKEN_CHATML),
        ["1", "2<|endoftext|>"],
        ["<|endoftext|>"],
        None,
    ),
    "ChatML without EOS": (
        TemplateFamily(CHATML, eos_token=None),
        ["1<|im_end|>", "2<|im_end|>"],
        [IM_END_TOKEN],
        IM_END_TOKEN,
    ),
    "ChatML, marked": (
        TemplateFamily(MARKED_CHATML),
        ["1<|im_end|>", "2<|im_end|>"],
        [IM_END_TOKEN, "<|endoftext|>"],
        IM_END_TOKEN,
    ),
    "Llama 3": (
        TemplateFamily(LLAMA3),
        ["1<|eot_id|>", "2<|eot_id|>"],
        ["<|eot_id|>", "<|endoftext|>"],
        "<|eot_id|>",
    ),
    "Mistral": (
        TemplateFamily(MISTRAL, plain_tokens=("[INST]", "[/INST]")),
        [" 1<|endoftext|>", " 2<|endoftext|>"],
        ["<|endoftext|>"],
        None,
    ),
    "Llama 2": (
        TemplateFamily(LLAMA2),
        [" 1 <|endoftext|>", " 2 <|endoftext|>"],
        ["<|endoftext|>"],
        None,
    ),
    "Gemma": (
        TemplateFamily(GEMMA, special_tokens=("<start_of_turn>", "<end_of_turn>")),
        ["1<end_of_turn>", "2<end_of_turn>"],
        ["<end_of_turn>", "<|endoftext|>"],
        "<end_of_turn>",
    ),
    "Command R": (
        TemplateFamily(
            COMMAND_R, special_tokens=("<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>"), eos_token="<|END_OF_TURN_TOKEN|>"
        ),
        ["1<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "2<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"],
        ["<|END_OF_TURN_TOKEN|>"],
        None,
    ),
    "Command R, half of the end marked": (
        TemplateFamily(HALF_MARKED_TEMPLATE, special_tokens=("<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>")),
        ["1<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "2<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"],
        ["<|END_OF_TURN_TOKEN|>", "<|endoftext|>"],
        "<|END_OF_TURN_TOKEN|>",
    ),
    "three end tokens": (
        TemplateFamily(
            THREE_ENDS_TEMPLATE,
            special_tokens=("<|END_RESPONSE|>", "<|END_ACTION|>", "<|END_OF_TURN_TOKEN|>"),
            eos_token="<|END_OF_TURN_TOKEN|>",
        ),
        [
            "1<|END_RESPONSE|><|END_ACTION|><|END_OF_TURN_TOKEN|>",
            "2<|END_RESPONSE|><|END_ACTION|><|END_OF_TURN_TOKEN|>",
        ],
        ["<|END_OF_TURN_TOKEN|>"],
        None,
    ),
    "Phi 3": (
        TemplateFamily(PHI3, special_tokens=("<|end|>",)),
        ["1<|end|>", "2<|end|>\n<|endoftext|>"],
        ["<|end|>", "<|endoftext|>"],
        None,
    ),
    "DeepSeek": (
        TemplateFamily(DEEPSEEK, special_tokens=("<|end▁of▁sentence|>",), eos_token="<|end▁of▁sentence|>"),
        ["1<|end▁of▁sentence|>", "2<|end▁of▁sentence|>"],
        ["<|end▁of▁sentence|>"],
        None,
    ),
    "gpt-oss": (
        TemplateFamily(GPT_OSS, special_tokens=("<|start|>", "<|end|>", "<|return|>"), eos_token="<|return|>"),
        ["<|channel|>final<|message|>1", "<|channel|>final<|message|>2<|return|>"],
        ["<|return|>"],
        None,
    ),
    "ordinary text on the same line": (
        TemplateFamily(BRACKETS_TEMPLATE),
        ["1", "2<|endoftext|>"],
        ["<|endoftext|>"],
        None,
    ),
    "ordinary text on a line of its own": (
        TemplateFamily(HEADINGS_TEMPLATE),
        ["1", "2<|endoftext|>"],
        ["<|endoftext|>"],
        None,
    ),
    "ordinary text that is marked": (
        TemplateFamily(MARKED_BRACKETS_TEMPLATE),
        ["1 [/END]", "2 [/END]<|endoftext|>"],
        ["<|endoftext|>"],
        None,
    ),
    "ordinary text before a token": (
        TemplateFamily(TAGGED_ANSWER_TEMPLATE),
        ["<r>1</r><|im_end|>", "<r>2</r><|im_end|>"],
        [IM_END_TOKEN, "<|endoftext|>"],
        IM_END_TOKEN,
    ),
    "blanks": (TemplateFamily(ALPACA), ["1", "2\n\n<|endoftext|>"], ["<|endoftext|>"], None),
    "nothing": (
        TemplateFamily(NO_END_TEMPLATE, special_tokens=("<|user|>", "<|assistant|>")),
        ["1", "2<|endoftext|>"],
        ["<|endoftext|>"],
        None,
    ),
}
