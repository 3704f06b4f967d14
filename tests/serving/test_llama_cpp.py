"""Tests that llama.cpp answers with the published GGUF files as the trainer does with adapter and base model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.support.trainer.tiny_model import config, import_libraries
from tests.support.trainer.tuned_model import load_tuned_model

from finetune_trainer.modeling.generation import generate_completions
from finetune_trainer.publishing.export import export_adapter
from finetune_trainer.publishing.gguf_converter import Converter
from finetune_trainer.publishing.gguf_files import GgufSources, create_gguf_files
from local_cluster.converters import ensure_converters, ensure_llama_cpp
from local_cluster.smollm2 import ensure_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

pytestmark = [pytest.mark.serving, pytest.mark.timeout(1800)]

PROMPTS = ("What is the capital of France?", "Name three colours.", "Write one sentence about rain.")
LENGTH = 24
MIN_EFFECT = 0.5
"""Difference of a logit that the adapter makes, which is larger than that of the formats with 16 bits."""
GGUF_TYPES = ("f16", "bf16", "q8_0")


@dataclass(frozen=True)
class Result:
    """A base model with an adapter, the model that both are merged into, and their GGUF files."""

    base_dir: Path
    adapter_dir: Path
    merged_dir: Path
    gguf_dir: Path


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("smollm2")
    base_dir = ensure_model()
    import_libraries()
    return convert(base_dir, folder)


def convert(base_dir: Path, folder: Path) -> Result:
    """Tune, merge and convert a model. The files of the base model are converted like a merged model."""
    from finetune_trainer.publishing.merge import merge_weights, save_merged_model

    settings = config({"precision": "fp32", "lora": {"rank": 16, "variant": "rslora"}})
    loaded = load_tuned_model(settings, base_dir)
    for name, weight in loaded.model.named_parameters():
        if ".lora_B." in name:
            weight.data *= 0.15
    adapter_dir, merged_dir = folder / "adapter", folder / "merged"
    export_adapter(settings, loaded, adapter_dir, "sha256:abc", base_dir)
    save_merged_model(merge_weights(loaded.model, lambda: None), loaded.tokenizer, base_dir, merged_dir)
    converter = Converter(ensure_converters(), lambda: None)
    for gguf_type in GGUF_TYPES:
        create_gguf_files(GgufSources(adapter_dir, base_dir, merged_dir), gguf_type, converter, folder / gguf_type)
        converter.convert_model(base_dir, gguf_type, folder / gguf_type / "base.gguf")
    return Result(base_dir, adapter_dir, merged_dir, folder)


def ask_llama(model: Path, adapter: Path | None, prompts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    request = {
        "model": str(model), "adapter": adapter and str(adapter), "prompts": prompts, "length": LENGTH
    }  # fmt: skip
    script = Path(__file__).with_name("llama_answers.py")
    done = subprocess.run(
        [ensure_llama_cpp(), script], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def render_prompts(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    rendered = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in PROMPTS
    ]
    return [
        {"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"], "ends": [tokenizer.eos_token_id]}
        for text in rendered
    ]


def compute_logits(result: Result, prompts: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(result.base_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, result.adapter_dir).eval()
    rows = [torch.tensor([prompt["ids"]]) for prompt in prompts]
    with torch.no_grad():
        tuned = [model(input_ids=row).logits[0, -1].numpy() for row in rows]
        with model.disable_adapter():
            plain = [model(input_ids=row).logits[0, -1].numpy() for row in rows]
    assert all(np.abs(first - second).max() > MIN_EFFECT for first, second in zip(tuned, plain, strict=True))
    return tuned


@pytest.mark.parametrize("gguf_type", GGUF_TYPES)
@pytest.mark.parametrize("form", ["adapter", "model"])
def test_llama_cpp_answers_like_trainer(result: Result, gguf_type: str, form: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(result.adapter_dir)
    prompts, folder = render_prompts(tokenizer), result.gguf_dir / gguf_type
    if form == "adapter":
        answers = ask_llama(folder / "base.gguf", folder / f"adapter-{gguf_type}.gguf", prompts)
    else:
        answers = ask_llama(folder / f"model-{gguf_type}.gguf", None, prompts)
    expected = generate_completions(result.base_dir, result.adapter_dir, PROMPTS, LENGTH)
    texts = [tokenizer.decode(each["answer"], skip_special_tokens=True) for each in answers]
    pairs = list(zip([np.array(each["logits"]) for each in answers], compute_logits(result, prompts), strict=True))
    differences = [float(np.abs(first - second).max()) for first, second in pairs]
    correlations = [float(np.corrcoef(first, second)[0, 1]) for first, second in pairs]
    print(f"{form} {gguf_type}: largest difference of logits {differences}, correlation {correlations}")
    for text, tuned in zip(texts, expected, strict=True):
        print(f"  llama.cpp: {text!r}\n  trainer:   {tuned!r}")
    assert [each["prompt"] for each in answers] == [prompt["ids"] for prompt in prompts]
    assert min(correlations) > (0.99 if gguf_type == "q8_0" else 0.9999)
    if gguf_type != "q8_0":
        assert max(differences) < MIN_EFFECT
        assert [text.strip() for text in texts] == [text.strip() for text in expected]
