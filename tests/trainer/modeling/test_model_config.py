"""Tests of which class of transformers a config.json stands for."""

from __future__ import annotations

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, import_libraries

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.model_config import choose_model_class

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

CLASSES = [
    ("llama", "LlamaForCausalLM", "AutoModelForCausalLM"),
    ("llama", None, "AutoModelForCausalLM"),
    ("llama", "YiForCausalLM", "AutoModelForCausalLM"),  # named by code that older versions needed
    ("gpt2", "GPT2LMHeadModel", "AutoModelForCausalLM"),
    ("gpt_neox", "GPTNeoXForCausalLM", "AutoModelForCausalLM"),  # its is_decoder is false
    ("qwen3_5", "Qwen3_5ForConditionalGeneration", "AutoModelForMultimodalLM"),
    ("qwen3_5", "Qwen3_5ForCausalLM", "AutoModelForCausalLM"),
    ("qwen3_5", None, "AutoModelForMultimodalLM"),
    ("qwen3_5_text", "Qwen3_5ForCausalLM", "AutoModelForCausalLM"),
    ("mistral3", "Mistral3ForConditionalGeneration", "AutoModelForMultimodalLM"),
    ("mistral3", None, "AutoModelForMultimodalLM"),
]
NO_HEAD, NO_DECODER = "a class that has no output head", "no decoder: is_decoder is false"
INCOMPLETE = [
    ("llama", "LlamaModel", NO_HEAD),
    ("gemma3_text", "Gemma3TextModel", NO_HEAD),
    ("clip", "CLIPModel", NO_HEAD),
    ("qwen3", "Qwen3Model", NO_HEAD),
    ("llama", "LlamaBidirectionalModel", NO_HEAD),
    ("bert", "BertLMHeadModel", NO_DECODER),
    ("roberta", None, NO_DECODER),
]
OTHERS = [
    ("llama", "LlamaForSequenceClassification"),
    ("modernbert", "ModernBertForMaskedLM"),
    ("t5", "T5ForConditionalGeneration"),
    ("t5", None),
    ("bart", "BartForConditionalGeneration"),  # transformers also has a class for its decoder alone
    ("siglip", None),
    ("diffusion_gemma", "DiffusionGemmaForBlockDiffusion"),
]


@pytest.mark.parametrize(("model_type", "architecture", "expected"), CLASSES)
def test_choose_model_class_follows_architectures(model_type: str, architecture: str | None, expected: str) -> None:
    import_libraries()
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, architectures=[architecture] if architecture else None)
    assert choose_model_class(config).__name__ == expected


@pytest.mark.parametrize(("model_type", "architecture", "problem"), INCOMPLETE)
def test_choose_model_class_without_head_or_decoder_is_unsupported(
    model_type: str, architecture: str | None, problem: str
) -> None:
    import_libraries()
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, architectures=[architecture] if architecture else None)
    with pytest.raises(TrainerError, match=problem) as caught:
        choose_model_class(config)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def test_choose_model_class_encoder_as_decoder_is_causal() -> None:
    import_libraries()
    from transformers import AutoConfig

    config = AutoConfig.for_model("bert", architectures=["BertLMHeadModel"], is_decoder=True)
    assert choose_model_class(config).__name__ == "AutoModelForCausalLM"


@pytest.mark.parametrize(("model_type", "architecture"), OTHERS)
def test_choose_model_class_of_other_tasks_is_unsupported(model_type: str, architecture: str | None) -> None:
    import_libraries()
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, architectures=[architecture] if architecture else None)
    with pytest.raises(TrainerError) as caught:
        choose_model_class(config)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    assert caught.value.message.startswith(
        f"the base model is {architecture or model_type} (model_type {model_type}), which is no decoder-only"
    )
