"""Answers of the published model end with the stop tokens of the training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.chat_template_families import FAMILIES, TemplateFamily
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, chat, config, write_rows

from finetune_trainer.data import preparation
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.modeling import loading
from finetune_trainer.modeling.generation import collect_end_token_ids, generate_completions
from finetune_trainer.publishing.export import export_adapter, export_generation_config, export_tokenizer
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.state import TrainingSession
from finetune_trainer.training.train import train

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

ANSWERS = {"What is red?": "A warm colour.", "What is blue?": "A cold colour."}
# As many models have it: transformers loads it, and refuses to save it again.
BASE_SETTINGS = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 1, "pad_token_id": 0, "x_note": "kept, très bien"}
TRAINED = ["ChatML, base model", "ChatML, end not flagged special", "ordinary text on the same line"]


@dataclass(frozen=True)
class PublishedAdapter:
    """A base model, and the files of an adapter that was trained to reproduce `ANSWERS`."""

    base: Path
    adapter: Path
    stops: list[str]


@pytest.fixture(scope="module", params=TRAINED)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PublishedAdapter:
    folder, (family, _, stops, _) = tmp_path_factory.mktemp("run"), FAMILIES[request.param]
    base = build(folder / "base", custom_tokenizer=family.build_tokenizer())
    (base / "generation_config.json").write_text(json.dumps(BASE_SETTINGS))
    settings = config({"maxSteps": 90, "batchSize": 3, "gradientAccumulation": 1, "gradientCheckpointing": False})
    words = loading.load_tokenizer(base)
    several = [text for pair in ANSWERS.items() for text in pair]
    rows = write_rows(folder / "rows", [*(chat(*pair) for pair in ANSWERS.items()), chat(*several)])
    prepared = preparation.prepare_dataset(
        settings,
        preparation.DataFiles([(settings.dataset.sources[0], [rows])], "sha256:0"),
        RowEncoding(words, get_method(settings)),
        folder,
    )
    loaded = loading.LoadedModel(loading.load_model(settings, base, "transformers"), words, "transformers")
    train(settings, loaded, prepared, TrainingSession(ProgressReporter()), folder)
    export_adapter(settings, loaded, folder / "adapter", "sha256:abc", base)
    return PublishedAdapter(base, folder / "adapter", stops)


def generate_with_transformers(published: PublishedAdapter, **settings: Any) -> list[str]:
    """Return the answers that transformers and PEFT generate from the published files."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    words = AutoTokenizer.from_pretrained(published.adapter)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(published.base), published.adapter)
    tuned.generation_config = GenerationConfig.from_pretrained(published.adapter)
    answers = []
    for prompt in ANSWERS:
        turns = [{"role": "user", "content": prompt}]
        inputs = words.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            output = tuned.generate(**inputs, max_new_tokens=40, do_sample=False, **settings)
        answers.append(words.decode(output[0, inputs["input_ids"].shape[1] :]))
    return answers


def test_export_generation_config_ends_answers(published: PublishedAdapter) -> None:
    assert generate_with_transformers(published) == [f"{answer}{published.stops[0]}" for answer in ANSWERS.values()]


def test_export_eos_token_ends_answers(published: PublishedAdapter) -> None:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(published.adapter)
    assert words.eos_token == published.stops[0]
    answers = generate_with_transformers(published, eos_token_id=words.eos_token_id)
    assert answers == [f"{answer}{published.stops[0]}" for answer in ANSWERS.values()]


def test_generate_ends_answers_like_export(published: PublishedAdapter) -> None:
    assert generate_completions(published.base, published.adapter, list(ANSWERS), 40) == list(ANSWERS.values())


def test_export_generation_config_keeps_base_settings(published: PublishedAdapter) -> None:
    settings = json.loads((published.adapter / "generation_config.json").read_text())
    stops = loading.load_tokenizer(published.base).convert_tokens_to_ids(published.stops)
    assert settings == BASE_SETTINGS | {"eos_token_id": stops}
    assert "très" in (published.adapter / "generation_config.json").read_text()


@pytest.mark.parametrize(("family", "_trained", "stops", "eos"), FAMILIES.values(), ids=FAMILIES)
def test_export_tokenizer_matches_trained_one(
    tmp_path: Path, family: TemplateFamily, _trained: list[str], stops: list[str], eos: str | None
) -> None:
    from transformers import AutoTokenizer

    words = family.build_tokenizer()
    export_tokenizer(words, tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.eos_token == (eos or family.eos_token)
    assert read.eos_token in stops
    assert read.get_vocab() == words.get_vocab()
    conversation = chat("a", "1 <|eot_id|>", "b", "2", "c")["messages"]
    for messages, options in ((conversation, {"add_generation_prompt": True}), (conversation[:-1], {})):
        assert read.apply_chat_template(messages, **options) == words.apply_chat_template(messages, **options)


@pytest.mark.parametrize(
    ("own", "expected"),
    [(None, [3, 1]), ({"eos_token_id": [9, 1, 8], "_from_model_config": True}, [3, 1, 9, 8]), ({"top_k": 5}, [3, 1])],
    ids=["no file", "several of its own", "none of its own"],
)
def test_export_generation_config_lists_trained_end_first(
    tmp_path: Path, own: dict[str, Any] | None, expected: list[int]
) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    words = FAMILIES["ChatML, base model"][0].build_tokenizer()
    base = build(tmp_path / "base", custom_tokenizer=words)
    (base / "generation_config.json").unlink()
    if own is not None:
        (base / "generation_config.json").write_text(json.dumps(own))
    loaded = loading.LoadedModel(AutoModelForCausalLM.from_pretrained(base), words, "transformers")
    export_generation_config(loaded.model, loaded.tokenizer, base, tmp_path)
    read = GenerationConfig.from_pretrained(tmp_path)
    assert read.eos_token_id == expected == collect_end_token_ids(loaded.model, words)
    assert (read.top_k, read.pad_token_id) == ((own or {}).get("top_k"), 0 if own is None else None)
    assert "_from_model_config" not in json.loads((tmp_path / "generation_config.json").read_text())
