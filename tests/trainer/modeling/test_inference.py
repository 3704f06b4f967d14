"""Decoding is greedy, regardless of the generation config of the base model, and stops at the stop tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.model_families import build_family
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, import_libraries, tokenizer

from finetune_trainer.modeling.generation import generate_completions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

NEW = 12
PROMPTS = [[40, 41, 42], [60, 61, 62, 63, 64], [70]]
LEAKS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "num_beams": {"num_beams": 3},
    "min_new_tokens": {"min_new_tokens": NEW},
    "max_time": {"max_time": 1e-9},
    "penalty_alpha": {"penalty_alpha": 0.9, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "prompt_lookup": {"prompt_lookup_num_tokens": 2, "repetition_penalty": 1.5},
    "forced_eos_token_id": {"forced_eos_token_id": 5, "forced_bos_token_id": 6},
    "sampling": {"do_sample": True, "temperature": 3.0, "top_k": 0, "num_return_sequences": 2},
    "suppress_tokens": {"suppress_tokens": list(range(8, 512, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(8, 512, 2))},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(9, 512, 2)]},
    "guidance_scale": {"guidance_scale": 2.0, "exponential_decay_length_penalty": [1, 4.0]},
    "sequence_bias": {"sequence_bias": [[[40], 50.0]]},
    "static cache": {"cache_implementation": "static"},
    "min_length": {"min_length": 40, "max_length": 41},
    "stop_strings": {"stop_strings": ["e", "a"]},
    "watermarking_config": {"watermarking_config": {"bias": 20.0}},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def base(model_dir: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir).eval()


def decode_greedily(model: PreTrainedModel, prompt: list[int], most: int = NEW) -> list[int]:
    """Token after token by hand, until one of the model's or the tokenizer's ends."""
    import torch

    ids, end = list(prompt), tokenizer().eos_token_id
    while len(ids) < len(prompt) + most and ids[-1] != end:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def decode_text(ids: list[int]) -> str:
    return tokenizer().decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "with adapter"])
@pytest.mark.parametrize("settings", LEAKS.values(), ids=LEAKS)
def test_inference_is_greedy_despite_generation_config(
    base: PreTrainedModel, settings: dict[str, Any], adapted: bool
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GenerationConfig

    from finetune_trainer.modeling.generation import TextGenerator

    expected = [decode_text(decode_greedily(base, prompt)) for prompt in PROMPTS]
    original_config = base.generation_config
    base.generation_config = generation_config = GenerationConfig(eos_token_id=original_config.eos_token_id, **settings)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"])) if adapted else base
    try:
        assert [answer.text for answer in TextGenerator(model, tokenizer(), NEW).generate(PROMPTS)] == expected
        assert base.generation_config is generation_config
    finally:
        if adapted:
            model.unload()
        base.generation_config = original_config


def test_inference_batches_hold_limited_tokens(base: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.modeling import generation

    prompts, batches = [[40 + index % 9 for index in range(size)] for size in (20, 18, 17, 16, 4, 3, 90)], []
    monkeypatch.setattr(generation, "MAX_GENERATION_TOKENS", 3 * (18 + NEW))
    generator = generation.TextGenerator(base, tokenizer(), NEW, lambda: batches.append(1))
    assert [answer.text for answer in generator.generate(prompts)] == [
        decode_text(decode_greedily(base, prompt)) for prompt in prompts
    ]
    assert len(batches) == 4, "the prompts of 3, 4, 16 tokens; of 17 and 18; of 20; and of 90, which alone exceeds it"


def test_generate_ignores_generation_config_file(model_dir: Path, tmp_path: Path) -> None:
    import shutil

    other = shutil.copytree(model_dir, tmp_path / "other")
    settings = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "suppress_tokens": [70, 71], "num_beams": 2}
    (other / "generation_config.json").write_text(json.dumps(settings))
    prompts = ["How do I turn the lamp on?", "What is red?"]
    assert generate_completions(other, None, prompts, NEW) == generate_completions(model_dir, None, prompts, NEW)


def test_inference_stops_at_last_position() -> None:
    import_libraries()
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from finetune_trainer.modeling.generation import TextGenerator

    torch.manual_seed(0)
    words = tokenizer()
    shape = GPT2Config(vocab_size=len(words), n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=None)
    model = GPT2LMHeadModel(shape).eval()
    prompts = [[40 + index % 9 for index in range(length)] for length in (3, 60, 64, 90, 63, 61)]
    answers = [answer.text for answer in TextGenerator(model, words, 8).generate(prompts)]
    rooms = [8, 4, 0, 0, 1, 3]
    assert answers == [decode_text(decode_greedily(model, *case)) for case in zip(prompts, rooms, strict=True)]


def test_inference_of_experts_ignores_router_settings(tmp_path: Path) -> None:
    prompts = ["a", "a longer prompt"]
    plain, routed = (
        generate_completions(
            build_family(tmp_path / str(enabled), "mixtral", output_router_logits=enabled), None, prompts, 6
        )
        for enabled in (False, True)
    )
    assert plain == routed
    assert any(plain)


def test_inference_of_padding_sensitive_model_pads_nothing(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from finetune_trainer.modeling.generation import TextGenerator

    model = AutoModelForCausalLM.from_pretrained(build_family(tmp_path / "model", "minimax")).eval()
    prompts = [[40 + index % 9 for index in range(size)] for size in (20, 5, 12)]
    generator = TextGenerator(model, tokenizer(), NEW)
    assert generator.generate(prompts) == [answer for prompt in prompts for answer in generator.generate([prompt])]
